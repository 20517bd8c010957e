"""Checks of output files before the work begins: no file is replaced unless --force asks for it."""

from __future__ import annotations

from pathlib import Path

from lsmooth.errors import InvalidArgumentError


def check_output(path: Path, force: bool) -> None:
    """Raise InvalidArgumentError if no file can be written at `path`; `force` permits to replace a file there."""
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder; choose another name.")
    if path.exists() and not force:
        raise InvalidArgumentError(f"{path} exists already; choose another name, or --force to replace it.")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"There is no folder {path.parent}; make it first, or choose another place.")
