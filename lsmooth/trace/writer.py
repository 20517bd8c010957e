"""Writes a trace: claims its path, appends measured steps, and keeps the file readable whatever happens."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.estimators import joined_norms
from lsmooth.trace import disk
from lsmooth.trace.continuation import Kept, first_rows, kept_of_same_run, rows_before
from lsmooth.trace.creation import already_exists, create
from lsmooth.trace.density import Counts
from lsmooth.trace.file import TraceFile
from lsmooth.trace.growing import GrowingFile
from lsmooth.trace.header import Header
from lsmooth.trace.lock import is_file_at, lock_as_writer, unlock
from lsmooth.trace.recent import dtype_of

Mode = Literal["x", "w", "a"]


class TraceWriter:
    """The only writer of a trace file.

    Args:
        path: File that the trace is written to.
        header: The header of the trace.
        mode: "x" refuses an existing file, "w" replaces it, "a" continues the trace of the same run.

    Raises:
        InvalidArgumentError: `mode` is none of these.
        TraceError: The file exists (mode "x"), is being written by another process, is damaged or belongs to another
            run (mode "a"), is no regular file, or its folder is missing.

    Attributes:
        path: The path as it was given.
        refusal: Why the system permits no writing there (permissions, a full disk), in one sentence; None if it does.
            A refused writer takes no rows, and does not change an existing file.
        next_step: Optimizer step with which a continued trace goes on; None for a new trace.
        seconds: `time` of the last row that a continued trace keeps; 0 without rows.
        density: Counts of all coordinates in a continued trace; None for a new trace, or if they are not counted.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, mode: Mode = "x") -> None:
        if mode not in ("x", "w", "a"):
            raise InvalidArgumentError(f"mode={mode!r} is none of 'x' (new file), 'w' (replace) and 'a' (continue).")
        self.path = Path(path)
        # Absolute, since the process may change its working directory later.
        self._place = Path(os.path.realpath(path))
        self._header = header
        self._mode = mode
        self.refusal: str | None = None
        self.next_step: int | None = None
        self.seconds = 0.0
        self.density: Counts | None = None
        # Descriptor that holds the lock on the file to continue, until a new file replaces it.
        self._claim: int | None = None
        self._rows_to_keep = 0
        self._file: GrowingFile | None = None
        try:
            self._take_path()
        except (OSError, RuntimeError) as error:
            refusal = (
                f"{self.path} cannot be written ({disk.reason(error)}); choose another path, or see to the permissions "
                "and the room there."
            )
            if disk.system_number(error) in (None, *disk.NEVER_A_FILE):
                raise TraceError(refusal) from error
            self.refusal = refusal
        _WRITERS_OF_THIS_PROCESS.add(self)

    def _take_path(self) -> None:
        """Create the file at the path, or lock the file that is continued."""
        if not self._place.parent.is_dir():
            raise TraceError(f"There is no folder {self.path.parent} to write {self.path.name} into; create it first.")
        exists = self._place.exists()
        if exists and self._mode == "x":
            raise already_exists(self.path)
        if exists and not (self._place.is_file() or self._place.is_dir()):
            # Root could replace a device file, which would damage the system.
            raise TraceError(f"{self.path} is not a regular file, and is never replaced; choose another path.")
        # The process that holds the lock on the file at this path is its writer. A new file is locked before it is
        # renamed.
        if exists and self._mode == "a":
            self._claim_earlier()
            return
        held = lock_as_writer(self._place) if exists else None
        try:
            self._file = create(self._place, self.path, self._header, replace=exists)
        finally:
            if held is not None:
                unlock(held)

    def _claim_earlier(self) -> None:
        """Lock the file that is continued, and refuse the file of another run."""
        held: int | None = None
        refused: OSError | None = None
        try:
            try:
                held = lock_as_writer(self._place)
                # With the first rows, a new file is written beside the old one. Find out now whether it can be.
                with tempfile.TemporaryFile(dir=self._place.parent):
                    pass
            except OSError as error:
                refused = error
            # Continuing the trace of another run is an error even where nothing can be written.
            if refused is None or os.access(self._place, os.R_OK):
                self._keep(kept_of_same_run(self._place, self.path, self._header))
            if refused is not None:
                raise refused
            self._claim, held = held, None
        finally:
            if held is not None:
                unlock(held)

    def _keep(self, kept: Kept) -> None:
        self._rows_to_keep, self.seconds = kept.rows, kept.seconds
        self.next_step, self.density = kept.next_step, kept.density

    @property
    def rows(self) -> int:
        """Number of measured steps in the trace."""
        return self._rows_to_keep if self._file is None else self._file.rows

    def go_on_from(self, step: int, rows: int | None = None) -> None:
        """Continue with optimizer step `step`, and drop the rows from there on; call it before the first `append`.

        Args:
            step: The next optimizer step.
            rows: Number of rows before it at the checkpoint; None if unknown.

        Raises:
            TraceError: The trace does not hold these rows, or has been written to already.
        """
        if self._mode != "a":
            return
        if self.next_step is None and self.refusal is not None:
            # The file cannot be read: keep the numbers of the checkpoint for the next checkpoint.
            self._rows_to_keep, self.next_step = rows or 0, step
            return
        if self.next_step is None:
            if rows:
                raise TraceError(
                    f"There was no {self.path} to continue, and the checkpoint knows of {rows} measured steps; give "
                    "the path of the trace that it was made with, or mode='x' to go on in a new one."
                )
            return
        if self._file is not None:
            raise TraceError(
                f"{self.path} has been written to already; load the checkpoint's state before the first step."
            )
        self._rows_to_keep, self.seconds = rows_before(self._place, self.path, step, rows)

    def append(self, rows: Mapping[str, NDArray[Any]], density: Counts | None = None) -> None:
        """Append measured steps and flush; after an error the file stays as it was, and takes no more rows.

        Args:
            rows: One array a field (see `Header.fields`), with steps along the first axis. Totals over the parameter
                tensors are computed here, and need not be given.
            density: Counts of all coordinates including these steps; None if they are not counted.

        Raises:
            OSError: The disk is full or gone.
        """
        try:
            self._begin()
            if self._file is None or not self._file.is_open:
                raise OSError(errno.EBADF, "it is closed")
            if not self._file.is_at(self._place):
                raise OSError(errno.ENOENT, "it was moved or deleted")
            self._file.put(self._as_stored(rows), density)
        except BaseException:
            self.abandon()
            raise

    def close(self, next_step: int | None = None) -> None:
        """Finish the file and release the lock.

        Args:
            next_step: The next optimizer step; by default the one after the last measured step.
        """
        try:
            self._begin()
            if self._file is not None and self._file.is_open:
                self._file.close(next_step)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave the file as it is on the disk, and release the lock."""
        if self._file is not None:
            self._file.abandon()
        claim, self._claim = self._claim, None
        if claim is not None:
            unlock(claim)
        _WRITERS_OF_THIS_PROCESS.discard(self)

    def forget(self) -> None:
        """Never touch the file again; called in a forked process, since the file is the parent's."""
        if self._file is not None:
            self._file.forget()
        claim, self._claim = self._claim, None
        if claim is not None:
            disk.redirect(claim)

    def _begin(self) -> None:
        """Replace a trace that is continued by a new file with the kept rows; do nothing if that was done already."""
        if self._file is not None or self._claim is None:
            return
        if not is_file_at(self._place, self._claim):
            raise OSError(errno.ENOENT, "it was moved or deleted")
        with TraceFile(self._place) as old:

            def fill(new: GrowingFile) -> None:
                for rows in first_rows(old, self._header, self._rows_to_keep):
                    new.put(rows)
                new.put_density(self.density)

            self._file = create(self._place, self.path, self._header, replace=True, fill=fill)
        claim, self._claim = self._claim, None
        unlock(claim)

    def _as_stored(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return rows in the file's own dtypes, with totals over all tensors."""
        fields, real = self._header.fields(), self._header.real
        with np.errstate(over="ignore"):
            stored = {
                item.name: np.asarray(rows[item.name]).astype(dtype_of(item, real), copy=False)
                for item in fields
                if not item.total_of
            }
        everything = [list(range(len(self._header.parameters)))]
        for item in fields:
            if item.total_of:
                stored[item.name] = joined_norms(stored[item.total_of], everything)[..., 0]
        return {item.name: stored[item.name] for item in fields}


# Writers of this process; a forked process must not write to their files.
_WRITERS_OF_THIS_PROCESS: weakref.WeakSet[TraceWriter] = weakref.WeakSet()


def _forget_writers_of_the_parent() -> None:
    for writer in list(_WRITERS_OF_THIS_PROCESS):
        writer.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_writers_of_the_parent)
