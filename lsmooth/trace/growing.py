"""A trace file that grows: rows are written to slots first, and to HDF5's chunks once they fill a chunk.

The file is in HDF5's single-writer multiple-reader (SWMR) mode, so that readers can follow it, and a killed run leaves
all flushed rows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsmooth.trace import disk, superblock
from lsmooth.trace.density import Counts, DensityWriter
from lsmooth.trace.header import Header
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.lock import is_file_at, unlock
from lsmooth.trace.recent import Closed, RecentWriter

# One array a field in the file's dtypes, including totals, with rows along the first axis.
Rows = Mapping[str, NDArray[Any]]


class GrowingFile:
    """An open trace that takes rows.

    Args:
        file: The trace in SWMR mode, laid out and without rows.
        header: The header that was laid out.
        lock: Descriptor of the same file that holds the writer's lock; this object unlocks it.
        folder: The folder of the file.

    Attributes:
        is_open: Whether the file takes rows.
    """

    def __init__(self, file: h5py.File, header: Header, lock: int, folder: Path) -> None:
        self._file = file
        self._lock = lock
        self._hdf5_descriptor: int = file.id.get_vfd_handle()
        self._fields = header.fields()
        # Kept open, since HDF5 2.0 crashes the process when it closes a dataset that it could not write to.
        self._datasets: dict[str, h5py.Dataset] = {item.name: file[item.name] for item in self._fields}
        self._sync = disk.PacedSync(lock, folder)
        self._recent = RecentWriter(file, header.record(), lock)
        self._density = DensityWriter(file, lock) if header.densities else None
        self._whole = 0
        # Rows that do not fill a chunk yet; the file has them in its slots.
        self._waiting: dict[str, NDArray[Any]] = {}
        # End of the file according to HDF5.
        self._end: int = file.id.get_filesize()
        # True while HDF5 changes its structures; stays True if an error interrupts that.
        self._in_doubt = False
        self.is_open = True
        self._give_back()

    @property
    def rows(self) -> int:
        """Number of rows, including those in slots."""
        return self._whole + (len(self._waiting["step"]) if self._waiting else 0)

    def is_at(self, place: Path) -> bool:
        """Say whether this file is still the one at a path; writes to a deleted file succeed, but are lost."""
        return is_file_at(place, self._lock)

    def put(self, new: Rows, density: Counts | None = None) -> None:
        """Append rows: whole chunks to the datasets, and the rest to the slots.

        Args:
            new: The rows, in the dtypes of the file.
            density: Counts of all coordinates including these rows; None if they are not counted.

        Raises:
            OSError: The disk is full or gone.
        """
        waiting = {
            name: np.concatenate([self._waiting[name], values]) if self._waiting else values
            for name, values in new.items()
        }
        before = len(waiting["step"]) - len(new["step"])
        whole = len(waiting["step"]) // CHUNK_STEPS * CHUNK_STEPS
        if whole:
            self._extend({name: values[:whole] for name, values in waiting.items()})
            # A copy, since a view would keep the written rows in memory.
            waiting = {name: values[whole:].copy() for name, values in waiting.items()}
            before, new = 0, waiting
        if len(new["step"]):
            self._recent.put(new, self._whole + before)
        self._waiting = waiting if len(waiting["step"]) else {}
        self.put_density(density)
        if self._sync.is_due():
            self._sync.now()

    def put_density(self, density: Counts | None) -> None:
        """Write the counts of all coordinates, if the trace keeps them."""
        if density is not None and self._density is not None:
            self._density.put(density)

    def close(self, next_step: int | None) -> None:
        """Finish the file: write all rows to chunks, note that the run has ended, and release the lock.

        Args:
            next_step: The next optimizer step; by default the one after the last row's.

        Raises:
            OSError: The disk is full or gone.
        """
        try:
            if self._waiting:
                self._extend(self._waiting)
                self._waiting = {}
            if next_step is None:
                next_step = int(self._file["step"][-1]) + 1 if self._whole else 0
            # All rows must be on the disk before the note that says so.
            self._sync.now()
            self._recent.mark_closed(Closed(self._whole, next_step, self._density.sequence if self._density else None))
            try:
                disk.reserve(self._lock, 0)
            except OSError:
                # All rows are in the file already; HDF5's own final writes are not needed.
                self.abandon()
                return
            self._in_doubt = True
            self._datasets = {}
            self._file.close()
            self.is_open = False
        finally:
            self.abandon()
        try:
            os.ftruncate(self._lock, superblock.stated_end(self._lock))
            self._sync.now()
        finally:
            unlock(self._lock)

    def abandon(self) -> None:
        """Leave the file as it is on the disk, and release the lock."""
        if not self.is_open:
            return
        self.is_open = False
        # HDF5 may hold incomplete changes. Whatever it still writes, now or at exit, must not reach the file.
        disk.redirect(self._hdf5_descriptor)
        if self._in_doubt:
            # HDF5 2.0 crashes when it closes a file that it could not write to.
            leave_open(self._file, self._datasets.values())
        else:
            self._datasets.clear()
            with contextlib.suppress(Exception):
                self._file.close()
        with contextlib.suppress(OSError):
            if self._in_doubt:
                # HDF5 was interrupted, and may have truncated the file. Keep the stated end, or all that may have been
                # written if that is more.
                size = max(os.fstat(self._lock).st_size, superblock.stated_end(self._lock))
                os.ftruncate(self._lock, size)
                superblock.state_end(self._lock, size)
            else:
                self._give_back()
        unlock(self._lock)

    def outlast(self) -> None:
        """Sync all rows to the disk, before the file replaces another one.

        Raises:
            OSError: The disk is full or gone.
        """
        disk.sync(self._lock)

    def discard(self) -> None:
        """Close a file that will be deleted."""
        if self.is_open:
            self.is_open = False
            disk.redirect(self._hdf5_descriptor)
            leave_open(self._file, self._datasets.values())
            unlock(self._lock)

    def forget(self) -> None:
        """Never touch the file again; called in a forked process, since the file is the parent's."""
        # HDF5 must not be called here, since another thread may have been inside it when the process was forked.
        if self.is_open:
            self.is_open = False
            disk.note_inherited(self._lock)
            disk.redirect(self._hdf5_descriptor)
            leave_open(self._file, self._datasets.values())
            disk.redirect(self._lock)

    def _extend(self, rows: Rows) -> None:
        """Append rows to the chunked datasets, and flush."""
        disk.reserve(self._lock, sum(values.nbytes for values in rows.values()))
        # From here on, whatever has been written lies within the stated end, also if the run is killed.
        reserved = os.fstat(self._lock).st_size
        superblock.state_end(self._lock, reserved)
        self._in_doubt = True
        # If a sync is due, the rows are synced to the disk before `step` counts them there.
        in_order = self._sync.is_due()
        for item in self._fields:
            dataset = self._datasets[item.name]
            # `step` is written last, so that a reader in between finds all rows complete that it counts.
            if item.name == "step":
                self._file.flush()
                superblock.state_end(self._lock, reserved)
                if in_order:
                    self._sync.now()
            dataset.resize(self._whole + len(rows[item.name]), axis=0)
            dataset[self._whole :] = rows[item.name]
        self._file.flush()
        self._in_doubt = False
        self._end = self._file.id.get_filesize()
        self._give_back()
        self._whole += len(rows["step"])
        if in_order:
            self._sync.now()

    def _give_back(self) -> None:
        """Set the file's end to that of HDF5, which frees space that was reserved and not used."""
        superblock.state_end(self._lock, self._end)
        os.ftruncate(self._lock, self._end)


def leave_open(file: h5py.File, datasets: Iterable[h5py.Dataset] = ()) -> None:
    """Keep h5py from ever closing a file: that of the parent process, or one that HDF5 could not write to."""
    for item in (file, *datasets):
        item.id.locked = True
