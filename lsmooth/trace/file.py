"""Reads the datasets of a trace file, also while it grows and after its writer was killed.

Nothing here needs torch or pandas.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import TraceError
from lsmooth.trace import opening
from lsmooth.trace.chunks import check_chunks
from lsmooth.trace.density import Counts, read_density
from lsmooth.trace.disk import path_text
from lsmooth.trace.layout import CHUNK_STEPS, DENSITY_GROUP
from lsmooth.trace.lock import is_being_written
from lsmooth.trace.recent import Closed, read_closed, read_recent
from lsmooth.trace.superblock import FileState, file_state

# Pauses, in seconds, between attempts to read while a writer changes the file; None marks the last attempt.
_PAUSES = (0.0, 0.0, 0.0, 0.01, 0.01, 0.02, 0.02, 0.05, 0.05, 0.1, 0.1, 0.2, 0.4, 0.8, None)

# Nanoseconds after a write to a file from which on a further write gives the file another time.
_TICK = 100_000_000

# Number of elements of a large dataset that are held at a time.
_BLOCK_ELEMENTS = 1 << 23

_Opened = TypeVar("_Opened", bound="TraceFile")


class TraceFile:
    """The base of `Trace`, which documents arguments, errors and attributes: its datasets, without pandas."""

    format_version: str
    metadata: dict[str, Any]
    parameters: list[str]
    parameter_sizes: NDArray[np.int64]
    gammas: NDArray[np.float64]
    coordinate_names: list[str]

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        self.path = Path(path_text(path))
        self._counts: Counts | None = None
        # State of the file when it was last read, and its stamp if nothing had been written for a while.
        self._seen: FileState | None = None
        self._settled: tuple[FileState, int] | None = None
        self._open()

    def _open(self) -> None:
        """Open the file and read everything that is not along `step`."""
        for pause in _PAUSES:
            # Asked before reading, since a writer may change the bytes that are read, and end before an error is seen.
            writing, before, stamp = self._is_being_written(), file_state(self.path), self._stamp()
            try:
                self._file: h5py.File = opening.open_file(self.path)
                with opening.reading(self.path, "header"):
                    self._take_in(opening.read_contents(self._file, self.path), self._grown(writing, before))
                # If the file has grown meanwhile, HDF5 may have read parts from different moments.
                if pause is None or file_state(self.path) == before:
                    self._seen, self._settled = before, stamp
                    return
                self.close()
            except BaseException as error:
                self.close()
                moving = writing or file_state(self.path) != before
                if not isinstance(error, TraceError) or pause is None or not moving:
                    raise
            time.sleep(pause)

    def _grown(self, writing: bool, now: FileState | None) -> bool:
        """Say whether the file is the one that was checked before, and a living run writes to it."""
        return writing and self._seen is not None and now is not None and self._seen[:2] == now[:2]

    def _take_in(self, contents: opening.Contents, grown: bool) -> None:
        self.format_version, self.metadata = contents.format_version, contents.metadata
        self.parameters, self.parameter_sizes = contents.parameters, contents.parameter_sizes
        self.gammas, self.coordinate_names = contents.gammas, contents.coordinate_names
        self._fields = frozenset(contents.fields)
        # If the run was killed while it appended rows, some datasets are longer than others.
        self._whole: int = min(dataset.shape[0] for dataset in contents.fields.values())
        self._recent = read_recent(self._file, contents.fields, self._whole)
        self._closed = read_closed(self._file)
        if self._closed is not None and self._closed.rows != self._whole:
            raise ValueError(f"it was closed with {self._closed.rows} rows, and has {self._whole}")
        # A closed file has no chunks beyond its rows. A living run adds whole chunks to a file checked before.
        check_chunks(contents.fields, self._fields, self._whole, by_number=grown or self._closed is not None)
        self._length = self._whole + len(self._recent)

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._length

    def close(self) -> None:
        """Close the file; values read before stay valid."""
        with contextlib.suppress(Exception):
            self._file.close()

    @property
    def state(self) -> Literal["complete", "being written", "cut off"]:
        """Whether the run has closed the file ("complete"), is writing it, or ended without closing it ("cut off").

        A run that has closed the file since this trace was opened or refreshed still counts as "being written", until
        `refresh` reads the rest.
        """
        if self._is_being_written():
            return "being written"
        if self._closed is None and self._closed_now() is not None:
            return "being written"
        return "cut off" if self._closed is None else "complete"

    def _closed_now(self) -> Closed | None:
        try:
            return read_closed(self._file)
        except (OSError, RuntimeError, KeyError, ValueError):
            return None

    @property
    def next_step(self) -> int:
        """Optimizer step with which a run would continue this trace, as far as the file tells."""
        if self._closed is not None:
            return self._closed.next_step
        return int(self.steps[-1]) + 1 if len(self) else 0

    def refresh(self) -> int:
        """Open the file again to see what was written since, and return the present number of measured steps.

        The new file of a resumed run, which has replaced the old one, is then read.

        Raises:
            TraceError: The file is gone or damaged.
        """
        if self._file and self._settled is not None and self._settled == self._stamp():
            return self._length
        self.close()
        self._open()
        for name in ("steps", "time", "status", "loss"):
            self.__dict__.pop(name, None)
        self._counts = None
        return self._length

    def _stamp(self) -> tuple[FileState, int] | None:
        """Return what changes with the next flush of a living run; None where none is at work, or one was just now."""
        now = time.time_ns()
        try:
            state, written = file_state(self.path), os.stat(self.path).st_mtime_ns
        except OSError:
            return None
        return (state, written) if state is not None and now - written > _TICK and self._is_being_written() else None

    def _is_being_written(self) -> bool:
        try:
            return self.path.is_file() and is_being_written(self.path)
        except OSError:
            return False

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> NDArray[Any]:
        """Return a dataset of the file, or some of its rows (measured steps).

        Args:
            name: Name of the dataset, such as "grad_norm" or "coordinate/grad".
            rows: The rows to read, counted in measured steps; all by default.
            columns: The entries of the last dimension (parameter tensors, coordinates) to read; all by default.

        Raises:
            TraceError: The trace has no such dataset, or it is damaged.
        """
        if name not in self._fields:
            raise TraceError(
                f"{self.path} has no {name}; it holds {', '.join(sorted(self._fields))} (see `lsmooth info`)."
            )
        start, stop, _ = (slice(None) if rows is None else rows).indices(self._length)
        with opening.reading(self.path, name):
            values = self._read_whole(name, start, min(stop, self._whole), columns)
            if stop > self._whole:
                newest = self._recent[name][max(start - self._whole, 0) : stop - self._whole]
                values = np.concatenate([values, newest if columns is None else newest[..., columns]])
            return values

    def _read_whole(self, name: str, start: int, stop: int, columns: slice | None) -> NDArray[Any]:
        part = slice(start, stop) if columns is None else (slice(start, stop), ..., columns)
        for pause in _PAUSES:
            writing = self._is_being_written()
            try:
                return np.asarray(self._file[name][part])
            except OSError:
                if pause is None or not writing:
                    raise
            time.sleep(pause)
        raise AssertionError("the last look returns or raises")

    def runs_of_rows(self, width: int) -> Iterator[slice]:
        """Yield slices of consecutive rows that fit in memory together; a row has `width` elements."""
        # Whole chunks, so that no chunk is read twice.
        rows = max(1, _BLOCK_ELEMENTS // max(1, width) // CHUNK_STEPS) * CHUNK_STEPS
        for start in range(0, len(self), rows):
            yield slice(start, min(start + rows, len(self)))

    def has(self, name: str) -> bool:
        """Say whether the trace has a dataset."""
        return name in self._fields

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer step index of each measured step, int64 (n,)."""
        return self.read("step")

    @cached_property
    def time(self) -> NDArray[np.float64]:
        """Seconds since the run began, without the gaps before it was resumed, float64 (n,)."""
        return self.read("time")

    @cached_property
    def status(self) -> NDArray[np.uint16]:
        """Bit flags of each measured step (`lsmooth.trace.layout.Status`), uint16 (n,)."""
        return self.read("status").astype(np.uint16, copy=False)

    @cached_property
    def loss(self) -> NDArray[np.float64]:
        """f(x_t) of each measured step, float64 (n,)."""
        return self.read("loss")

    @property
    def lr(self) -> NDArray[np.float64]:
        """Learning rate of each parameter group at each measured step, float64 (n, groups)."""
        return self.read("lr")

    @cached_property
    def coordinate_owners(self) -> NDArray[np.int64]:
        """Position of the parameter tensor that each followed coordinate belongs to, int64 (c,)."""
        with opening.reading(self.path, "coordinate"):
            owners: NDArray[np.int64] = self._file["coordinate/parameter"][:]
            if ((owners < 0) | (owners >= len(self.parameters))).any():
                raise ValueError("a coordinate belongs to no parameter tensor")
        return owners

    @property
    def has_densities(self) -> bool:
        """Whether all coordinates were counted (`Recorder(densities=True)`)."""
        return f"{DENSITY_GROUP}/counts" in self._file

    def density_counts(self) -> Counts:
        """Return the counts of all parameter tensors together; see `density`."""
        if not self.has_densities:
            raise TraceError(f"{self.path} has no densities; record with densities=True to count all coordinates.")
        if self._counts is None:
            with opening.reading(self.path, "density"):
                self._counts = read_density(self._file, None if self._closed is None else self._closed.density_sequence)
        return self._counts
