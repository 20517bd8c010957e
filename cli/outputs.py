"""Checks of output files before the work begins: no file is replaced unless --force asks for it."""

from __future__ import annotations

from pathlib import Path

from lsmooth.errors import InvalidArgumentError


def refusal(path: Path, force: bool, instead: str = "choose another name") -> str | None:
    """Return why no file can be written at `path`, in one sentence; None if it can.

    Args:
        path: The file.
        force: Whether a regular file at this path may be replaced. No other kind ever is: to replace a device file, for
            which root has the permission, damages the system.
        instead: What the user can do about an existing file, besides --force.
    """
    if path.is_dir():
        return f"{path} is a folder; choose another name."
    if path.exists() and not path.is_file():
        return f"{path} is not a regular file, and is never replaced; choose another name."
    if path.exists() and not force:
        return f"{path} exists already; {instead}, or --force to replace it."
    if not path.parent.is_dir():
        return f"There is no folder {path.parent}; make it first, or choose another place."
    return None


def check_output(path: Path, force: bool, instead: str = "choose another name") -> None:
    """Raise InvalidArgumentError if no file can be written at `path`; see `refusal`."""
    reason = refusal(path, force, instead)
    if reason is not None:
        raise InvalidArgumentError(reason)
