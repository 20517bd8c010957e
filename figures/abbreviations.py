"""Shorter and shorter forms of dotted names, for labels and tables. Tables need no matplotlib, nor does this."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


def abbreviations(name: str) -> Iterator[str]:
    """Yield shorter and shorter forms of a dotted name: each has one more part, from the left, cut to its first letter.

    Numbers stay, also those at the end of a part (`l2` for linear2), since they tell layers apart.

    Examples:
        >>> list(abbreviations("encoder.layers.0.linear2"))
        ['encoder.layers.0.linear2', 'e.layers.0.linear2', 'e.l.0.linear2', 'e.l.0.linear2']
    """
    parts = name.split(".")
    yield name
    for place in range(len(parts) - 1):
        parts[place] = _cut(parts[place])
        yield ".".join(parts)


def explain(names: Iterable[tuple[str, str]]) -> str:
    """Return what the abbreviated parts of names stand for, for a caption; "" where none is abbreviated.

    Args:
        names: Pairs of a whole name and what it was abbreviated to.

    Examples:
        >>> explain([("encoder.layers.0.linear2", "e.l.0.linear2")])
        'e=encoder, l=layers'
    """
    meanings: dict[str, dict[str, None]] = {}
    for name, short in names:
        whole, cut = name.split("."), short.split(".")
        if len(whole) != len(cut):
            continue
        for part, letter in zip(whole, cut, strict=True):
            if part != letter and letter == _cut(part):
                bare = letter.rstrip("0123456789") or letter
                meanings.setdefault(bare, {})[part.rstrip("0123456789") or part] = None
    return ", ".join(f"{letter}={'|'.join(parts)}" for letter, parts in meanings.items())


def _cut(part: str) -> str:
    """Return the first letter of a part, or its first number, and the number at its end."""
    return re.sub(r"^(\d+|\D).*?(\d*)$", r"\1\2", part)
