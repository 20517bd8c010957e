"""Dotted names in fewer and fewer letters, for labels and for tables; without matplotlib, which tables do not need."""

from __future__ import annotations

import re
from collections.abc import Iterator


def abbreviations(name: str) -> Iterator[str]:
    """Yield a dotted name whole, then with one part more, from the left, cut to its first letter each time.

    Numbers stay, also those at the end of a part (`l2` for linear2), since they tell layers apart.

    Example:
        >>> list(abbreviations("encoder.layers.0.linear2"))
        ['encoder.layers.0.linear2', 'e.layers.0.linear2', 'e.l.0.linear2', 'e.l.0.linear2']
    """
    parts = name.split(".")
    yield name
    for place in range(len(parts) - 1):
        parts[place] = re.sub(r"^(\d+|\D).*?(\d*)$", r"\1\2", parts[place])
        yield ".".join(parts)
