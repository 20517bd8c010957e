"""The choice of a file for each training of a callback, which may see several, one after another."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lsmooth.trace.disk import path_text

if TYPE_CHECKING:
    from lsmooth.trace.writer import Mode


class SuccessivePaths:
    """The files of a callback's trainings.

    A training that came to its end keeps its trace: the next one is recorded in `run-2.h5` beside `run.h5`. One that
    failed is taken over by the next attempt.

    Args:
        path: Where the first training's trace goes.
        mode: "x" refuses an existing file, "w" replaces it.
    """

    def __init__(self, path: str | bytes | os.PathLike[str], mode: Mode) -> None:
        self._path = path_text(path)
        self._first = Path(self._path)
        self._mode: Mode = mode
        self._trainings = 0
        self._finished = False

    def begin(self, *, resumed: bool) -> tuple[str, Mode]:
        """Return path and mode for the recorder of a training that begins, from a checkpoint or anew."""
        path, mode = self._path, self._mode
        if resumed:
            mode = "a" if mode == "x" else mode
        elif self._finished and mode == "x":
            path = str(self._first.with_stem(f"{self._first.stem}-{self._trainings + 1}"))
            warnings.warn(
                f"{self._path} holds the training that this callback has recorded before; the one that begins now is "
                f"recorded in {path}.",
                stacklevel=3,
            )
        elif self._trainings:
            # The last attempt's file is this callback's own.
            mode = "w"
        return path, mode

    def begun(self, path: str, *, resumed: bool) -> None:
        """Note that the training's recorder has been made, with the path that `begin` returned."""
        self._path = path
        self._trainings += int(not self._trainings or (self._finished and not resumed))
        self._finished = False

    def ended(self) -> None:
        """Note that the training has come to its end."""
        self._finished = True
