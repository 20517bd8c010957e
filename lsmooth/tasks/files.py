"""Files of data sets: only regular ones are read, since others may hang or never end."""

from __future__ import annotations

from pathlib import Path

from lsmooth.errors import DataError


def check_regular(path: Path) -> None:
    """Raise a DataError if a path leads to a pipe, a device, a socket or a folder."""
    if not path.is_file():
        raise DataError(f"{path} is not a regular file; put a regular file in its place.")
