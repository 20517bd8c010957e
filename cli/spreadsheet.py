"""Tables as comma-separated values that a spreadsheet shows, and never runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

# A spreadsheet takes a text that begins like this for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_csv(frame: pd.DataFrame, path: Path | None = None) -> str:
    """Write a table as CSV, or return it as text without a path.

    Names come from the model, and a trace may come from anyone. A text that begins like a formula gets an apostrophe
    before it, as the Open Worldwide Application Security Project advises ("CSV injection").
    """
    plain = frame.rename(columns=_as_text)
    for column in plain.select_dtypes(exclude="number").columns:
        plain[column] = plain[column].map(_as_text)
    return plain.to_csv(path, index=False) or ""


def _as_text(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
