"""Write a trace: create the file, append measured steps, and keep it readable whatever happens.

The file is complete under its name from the moment it appears, in HDF5's single-writer multiple-reader (SWMR) mode, so
that readers can follow it and a killed run leaves all that was flushed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import re
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.estimators import joined_norms
from lsmooth.trace import header_sum
from lsmooth.trace.attributes import put_text
from lsmooth.trace.density import Counts, DensityWriter, create_density, density_bytes
from lsmooth.trace.layout import (
    CHUNK_STEPS,
    COMMENT,
    FIELDS,
    FIRST_FORMAT,
    FORMAT,
    FORMAT_VERSION,
    Field,
    Status,
    chunk_shape,
    fields_of,
)
from lsmooth.trace.lock import is_file_at, lock_as_writer, unlock
from lsmooth.trace.recent import RecentWriter, create_recent, dtype_of, record_of
from lsmooth.trace.superblock import state_end, stated_end

if TYPE_CHECKING:
    from lsmooth.trace.reader import Trace

Mode = Literal["x", "w", "a"]
_FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}


@dataclass(frozen=True)
class Header:
    """What a trace says before its first step: the names along its dimensions and what run this is.

    Attributes:
        parameters: Names of the parameter tensors.
        parameter_sizes: Their numbers of elements.
        gammas: Interpolation points.
        groups: Number of parameter groups of the optimizer.
        real: "float32" or "float64", the dtype of norms and followed coordinates.
        endpoint: Whether x_{t+1} is evaluated too.
        noise: Whether the probes' gradient noise is kept.
        norms: Geometries that are measured besides l2.
        densities: Whether all coordinates are counted.
        coordinate_names: Labels of the followed coordinates; empty for none.
        coordinate_owners: Positions of their parameter tensors.
        coordinate_indices: Their positions in the flattened tensors.
        attributes: Root attributes; text, numbers, and what JSON can hold.
    """

    parameters: tuple[str, ...]
    parameter_sizes: tuple[int, ...]
    gammas: tuple[float, ...]
    groups: int
    real: str
    endpoint: bool
    noise: bool
    coordinate_names: tuple[str, ...]
    coordinate_owners: NDArray[np.int64]
    coordinate_indices: NDArray[np.int64]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    densities: bool = False

    def fields(self) -> list[Field]:
        """Return the datasets that such a trace has, in the order in which they are appended."""
        measured = {"endpoint": self.endpoint, "noise": self.noise, "coordinates": bool(self.coordinate_names)}
        return fields_of(frozenset({*self.norms, *(name for name, there in measured.items() if there)}))

    def sizes(self) -> dict[str, int]:
        """Return the length of every dimension but `step`."""
        return {
            "gamma": len(self.gammas),
            "parameter": len(self.parameters),
            "group": self.groups,
            "coordinate": len(self.coordinate_names),
        }


# Index entries and the like that HDF5 writes beside a block of chunks, more than it ever needs.
_INDEX_BYTES = 1 << 16
# What may wait in memory for a disk that takes nothing.
QUEUE_BYTES = 1 << 28
# Rows that are copied at a time when a trace is continued.
_COPY_BYTES = 1 << 26


class TraceWriter:
    """The one writer of a trace file.

    Args:
        path: Where the trace goes.
        header: What stands in it before the first step.
        mode: "x" refuses an existing file, "w" replaces it, "a" continues the same run's trace.

    Raises:
        InvalidArgumentError: `mode` is none of these.
        TraceError: The file exists (mode "x"), is being written by another process, is damaged or belongs to another
            run (mode "a"), is a folder, or its folder is missing.

    Attributes:
        path: Where the trace goes, as it was given.
        refusal: Why the system lets nothing be written there (permissions, a full disk), in one sentence, None where it
            does. Such a writer takes no rows, and leaves a file that is there as it is.
        next_step: Optimizer step that a continued trace goes on with, None for a new one.
        seconds: `time` of the last row that a continued trace keeps, 0 where there is none.
        density: What a continued trace has counted of all coordinates, None where it does not, or is new.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, mode: Mode = "x") -> None:
        if mode not in ("x", "w", "a"):
            raise InvalidArgumentError(f"mode={mode!r} is none of 'x' (new file), 'w' (replace) and 'a' (continue).")
        self.path = Path(path)
        # The process may change its working directory later.
        self._place = Path(os.path.realpath(path))
        self._header = header
        self._fields = header.fields()
        self._dtypes = {item.name: dtype_of(item, header.real) for item in self._fields}
        self._mode = mode
        self.refusal: str | None = None
        self.next_step: int | None = None
        self.seconds = 0.0
        self.density: Counts | None = None
        # Rows in the chunked datasets, and those that wait in their slots until they fill a chunk.
        self._whole = 0
        self._waiting: dict[str, NDArray[Any]] = {}
        self._recent: RecentWriter | None = None
        self._density: DensityWriter | None = None
        self._lock: int | None = None
        self._file: h5py.File | None = None
        # Kept open: HDF5 2.0 crashes when a dataset that it could not write to is closed, and the process ends.
        self._datasets: dict[str, h5py.Dataset] = {}
        self._descriptor = -1
        # Where HDF5 has the file end.
        self._end = 0
        # Whether HDF5 is at work on the file, or was when an error occurred.
        self._in_doubt = False
        try:
            self._claim()
        except (OSError, RuntimeError) as error:
            refusal = (
                f"{self.path} cannot be written ({_reason(error)}); choose another path, or see to the permissions and "
                "the room there."
            )
            if _system_number(error) in (None, *_MISTAKES):
                raise TraceError(refusal) from error
            self.refusal = refusal
        _WRITERS.add(self)

    def _claim(self) -> None:
        """Take possession of the path: create the file there, or lock the one that is to be continued."""
        if not self._place.parent.is_dir():
            raise TraceError(f"There is no folder {self.path.parent} to write {self.path.name} into; create it first.")
        exists = self._place.exists()
        if exists and self._mode == "x":
            raise _exists(self.path)
        # Whoever holds the lock on the file at this path is its writer; a new file is locked before it gets the name.
        held: int | None = None
        try:
            if exists and self._mode == "a":
                refused: OSError | None = None
                try:
                    held = lock_as_writer(self._place)
                    # It is written anew beside the old one when the first rows come; whether it can be is asked now.
                    with tempfile.TemporaryFile(dir=self._place.parent):
                        pass
                except OSError as error:
                    refused = error
                # To continue another run's is a mistake in any case, where it can be seen.
                if refused is None or os.access(self._place, os.R_OK):
                    self._check_same_run()
                if refused is not None:
                    raise refused
                self._lock, held = held, None
            else:
                held = lock_as_writer(self._place) if exists else None
                self._create(replace=exists)
        finally:
            if held is not None:
                unlock(held)

    @property
    def rows(self) -> int:
        """How many measured steps the trace has."""
        return self._whole + (len(self._waiting["step"]) if self._waiting else 0)

    def go_on_from(self, step: int, rows: int | None = None) -> None:
        """Continue with optimizer step `step`, and drop the rows from there on; call it before the first `append`.

        Args:
            step: The optimizer step that comes next.
            rows: How many rows there were before it, where that is known.

        Raises:
            TraceError: The trace does not hold these rows, or has been written to already.
        """
        if self._mode != "a":
            return
        if self.next_step is None and self.refusal is not None:
            # What is there cannot be seen: what the checkpoint says goes on into the next one.
            self._whole, self.next_step = rows or 0, step
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
        from lsmooth.trace.reader import Trace

        with Trace(self._place) as old:
            kept = int(np.searchsorted(old.steps, step))
            seconds = float(old.time[kept - 1]) if kept else 0.0
        if rows is not None and kept != rows:
            raise TraceError(
                f"{self.path} holds {kept} measured steps before step {step}, and the checkpoint knows of {rows}: "
                "they do not belong together; continue the trace that the checkpoint was made with."
            )
        self._whole, self.seconds = kept, seconds

    def append(self, rows: Mapping[str, NDArray[Any]], density: Counts | None = None) -> None:
        """Append measured steps, one array a field (see `Header.fields`), steps along the first axis, and flush.

        Totals over the parameter tensors need not be given: they are joined here. After an error the file stays as it
        was, and takes no more rows.

        Args:
            rows: The measured steps.
            density: What is counted of all coordinates, these steps included.

        Raises:
            OSError: The disk is full or gone.
        """
        try:
            self._begin()
            if self._file is None or self._lock is None:
                raise OSError(errno.EBADF, "it is closed")
            if not is_file_at(self._place, self._lock):
                # Writes to a deleted file succeed, and are lost.
                raise OSError(errno.ENOENT, "it was moved or deleted")
            self._put(self._as_stored(rows))
            if density is not None and self._density is not None:
                self._density.put(density)
        except BaseException:
            self.abandon()
            raise

    def close(self, next_step: int | None = None) -> None:
        """Finish the file and give up the lock.

        Args:
            next_step: Optimizer step that would come next, by default the one after the last measured.
        """
        try:
            self._begin()
            if self._file is not None and self._lock is not None:
                if self._waiting:
                    self._extend(self._waiting)
                    self._waiting = {}
                if next_step is None:
                    next_step = int(self._file["step"][-1]) + 1 if self._whole else 0
                assert self._recent is not None
                self._recent.mark_closed(self._whole, next_step)
                try:
                    _reserve(self._lock, 0)
                except OSError:
                    # All is in the file; what HDF5 has yet to write is for itself.
                    return
                self._in_doubt = True
                self._datasets = {}
                self._file.close()
                self._file, self._in_doubt = None, False
                os.ftruncate(self._lock, stated_end(self._lock))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave the file as it is on the disk, and give up the lock: HDF5 may hold changes that are not whole."""
        file, self._file = self._file, None
        datasets, self._datasets = self._datasets, {}
        if file is not None:
            # What HDF5 still writes, now or when the process ends, goes nowhere.
            _redirect(self._descriptor)
            if self._in_doubt:
                # HDF5 2.0 crashes when it closes a file that it could not write to.
                _leave_open(file, datasets)
            else:
                datasets.clear()
                with contextlib.suppress(Exception):
                    file.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            if file is not None:
                with contextlib.suppress(OSError):
                    if self._in_doubt:
                        # HDF5 was stopped at its work, and may have cut the file off: it keeps the end that it states,
                        # or all that may have been written.
                        size = max(os.fstat(lock).st_size, stated_end(lock))
                        os.ftruncate(lock, size)
                        state_end(lock, size)
                    else:
                        self._give_back(lock)
            unlock(lock)
        _WRITERS.discard(self)

    def forget(self) -> None:
        """In a forked process: keep hands off the file, which is the parent's."""
        # No call of HDF5 here: another thread may have been inside it when the process was forked.
        if self._file is not None:
            _redirect(self._descriptor)
            _leave_open(self._file, self._datasets)
        if self._lock is not None:
            _redirect(self._lock)
        self._file = self._lock = None

    def _as_stored(self, rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return rows in the file's own dtypes, with totals over all tensors."""
        with np.errstate(over="ignore"):
            stored = {
                item.name: np.asarray(rows[item.name]).astype(self._dtypes[item.name], copy=False)
                for item in self._fields
                if not item.total_of
            }
        everything = [list(range(len(self._header.parameters)))]
        for item in self._fields:
            if item.total_of:
                stored[item.name] = joined_norms(stored[item.total_of], everything)[..., 0]
        return {item.name: stored[item.name] for item in self._fields}

    def _put(self, new: Mapping[str, NDArray[Any]]) -> None:
        """Write rows as they are stored: whole chunks for good, the rest into the slots for recent rows."""
        assert self._recent is not None
        waiting = {
            name: np.concatenate([self._waiting[name], values]) if self._waiting else values
            for name, values in new.items()
        }
        before = len(waiting["step"]) - len(new["step"])
        whole = len(waiting["step"]) // CHUNK_STEPS * CHUNK_STEPS
        if whole:
            self._extend({name: values[:whole] for name, values in waiting.items()})
            # A copy, so that what is written is not kept alive by what waits.
            waiting = {name: values[whole:].copy() for name, values in waiting.items()}
            before, new = 0, waiting
        if len(new["step"]):
            self._recent.put(new, self._whole + before)
        self._waiting = waiting if len(waiting["step"]) else {}

    def _extend(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append rows to the chunked datasets, and flush."""
        assert self._file is not None
        assert self._lock is not None
        _reserve(self._lock, sum(values.nbytes for values in rows.values()))
        # Whenever the run is killed from here on, what has been written lies within the end that the file states.
        reserved = os.fstat(self._lock).st_size
        state_end(self._lock, reserved)
        self._in_doubt = True
        for item in self._fields:
            dataset = self._datasets[item.name]
            # `step` comes last: what it counts is whole, whoever looks in between.
            if item.name == "step":
                self._file.flush()
                state_end(self._lock, reserved)
            dataset.resize(self._whole + len(rows[item.name]), axis=0)
            dataset[self._whole :] = rows[item.name]
        self._file.flush()
        self._in_doubt = False
        self._end = self._file.id.get_filesize()
        self._give_back(self._lock)
        self._whole += len(rows["step"])

    def _give_back(self, descriptor: int) -> None:
        """Let the file end where HDF5 has it end: what was reserved and not used goes back."""
        state_end(descriptor, self._end)
        os.ftruncate(descriptor, self._end)

    def _begin(self) -> None:
        """Start writing to a continued trace: a fresh file with the rows to keep takes the old one's place."""
        if self._file is not None or self._lock is None:
            return
        from lsmooth.trace.reader import Trace

        old_lock, self._lock = self._lock, None
        try:
            if not is_file_at(self._place, old_lock):
                raise OSError(errno.ENOENT, "it was moved or deleted")
            with Trace(self._place) as old:
                self._create(replace=True, old=old)
        except BaseException:
            self._lock = old_lock
            raise
        unlock(old_lock)

    def _create(self, *, replace: bool, old: Trace | None = None) -> None:
        """Write a new file beside the path, lock it, and give it the name.

        Args:
            replace: Whether there is a file at the path, which this process has locked.
            old: The trace whose first `rows` rows the new file begins with.
        """
        lock: int | None = None
        temporaries: list[Path] = []
        try:
            file = self._new_file(temporaries)
            temporary = temporaries[-1]
            try:
                self._lay_out(file)
                file.swmr_mode = True
                file.flush()
                lock = lock_as_writer(temporary)
                self._end = file.id.get_filesize()
                self._give_back(lock)
                self._datasets = {item.name: file[item.name] for item in self._fields}
                self._file, self._lock, self._descriptor = file, lock, file.id.get_vfd_handle()
                self._recent = RecentWriter(file, self._record(), lock)
                if self._header.densities:
                    self._density = DensityWriter(file, lock)
                if old is not None:
                    self._copy(old)
                    if self._density is not None and self.density is not None:
                        self._density.put(self.density)
                if replace:
                    temporary.replace(self._place)
                else:
                    _rename_without_replacing(temporary, self._place, self.path)
            except BaseException:
                self._file = self._lock = None
                _redirect(file.id.get_vfd_handle())
                _leave_open(file, self._datasets)
                self._datasets = {}
                if lock is not None:
                    unlock(lock)
                raise
        finally:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)

    def _new_file(self, temporaries: list[Path]) -> h5py.File:
        """Create a file beside the path, the last one that is added to `temporaries`."""
        while True:
            handle, name = tempfile.mkstemp(prefix=f".{self._place.name}.", dir=self._place.parent)
            temporaries.append(Path(name))
            try:
                # Is there room? A file that HDF5 could not finish would crash it.
                _reserve(handle, self._first_bytes())
            finally:
                os.close(handle)
            os.chmod(name, 0o666 & ~_umask())
            try:
                # Structures of HDF5 1.10, which SWMR came with: those of 2.0 cannot be read by HDF5 1.x, which h5dump,
                # netCDF and MATLAB have. No cache of chunks: each is written once, whole, and datasets stay open as
                # long as the run lasts.
                return h5py.File(name, "w", libver=("v110", "v110"), track_order=True, rdcc_nbytes=0)
            except OSError as error:
                # The system gives the number of a deleted file to the next one, and HDF5, which tells files apart by
                # it, still counts as open what it could not write to. While this file stays, the next has another one.
                if "already open" not in str(error) or len(temporaries) > _MOST_LEFT_OPEN:
                    raise

    def _copy(self, old: Trace) -> None:
        """Append the first `rows` rows of another trace, some at a time."""
        count, self._whole = self._whole, 0
        width = max(1, self._record().itemsize)
        at_once = max(1, _COPY_BYTES // width // CHUNK_STEPS) * CHUNK_STEPS
        for start in range(0, count, at_once):
            part = slice(start, min(start + at_once, count))
            self._put({item.name: self._read_from(old, item, part) for item in self._fields})

    def _read_from(self, old: Trace, item: Field, part: slice) -> NDArray[Any]:
        """Return rows of a field of an older trace, NaN where its format had no such field yet."""
        if item.since > FIRST_FORMAT and not old.has(item.name):
            return np.full(len(old.steps[part]), np.nan)
        return old.read(item.name, part)

    def _first_bytes(self) -> int:
        """Return about how many bytes a trace takes before its first step."""
        names = (*self._header.parameters, *self._header.coordinate_names)
        counts = density_bytes(len(self._header.parameters)) if self._header.densities else 0
        return CHUNK_STEPS * self._record().itemsize + counts + 64 * len(names) + sum(map(len, names)) + _INDEX_BYTES

    def _record(self) -> np.dtype[Any]:
        return record_of(self._fields, self._header.sizes(), self._header.real)

    def _lay_out(self, file: h5py.File) -> None:
        header = self._header
        sizes = header.sizes()
        put_text(file, "format", FORMAT)
        put_text(file, "format_version", FORMAT_VERSION)
        put_text(file, "Conventions", "CF-1.10")
        put_text(file, "comment", COMMENT)
        for name, value in header.attributes.items():
            if isinstance(value, (int, float)):
                file.attrs[name] = value
            else:
                put_text(file, name, value if isinstance(value, str) else json.dumps(value))
        scales = {
            "gamma": _scale(file, "gamma", np.asarray(header.gammas), "position between x_t (0) and x_{t+1} (1)"),
            "parameter": _scale(file, "parameter", _text(header.parameters), "name of the parameter tensor"),
            "group": _scale(file, "group", np.arange(header.groups), "parameter group of the optimizer"),
        }
        size = file.create_dataset(
            "parameter_size", data=np.asarray(header.parameter_sizes), chunks=(len(header.parameters),), **_FILTERS
        )
        put_text(size, "long_name", "number of elements of the parameter tensor")
        put_text(size, "units", "1")
        size.dims[0].attach_scale(scales["parameter"])
        if header.coordinate_names:
            folder = file.create_group("coordinate", track_order=True)
            put_text(folder, "long_name", "single coordinates of the parameters, followed through the run")
            scale = _scale(folder, "coordinate", _text(header.coordinate_names), "parameter[index]")
            scales["coordinate"] = scale
            for name, values, meaning in (
                ("parameter", header.coordinate_owners, "position along the dimension `parameter`"),
                ("index", header.coordinate_indices, "position in the flattened tensor"),
            ):
                dataset = folder.create_dataset(name, data=values, chunks=values.shape, **_FILTERS)
                put_text(dataset, "long_name", meaning)
                dataset.dims[0].attach_scale(scale)
        created: dict[str, h5py.Dataset] = {}
        for item in sorted(self._fields, key=lambda item: item.name != "step"):
            shape = (0, *(sizes[name] for name in item.dims[1:]))
            dataset = file.create_dataset(
                item.name,
                shape=shape,
                maxshape=(None, *shape[1:]),
                dtype=self._dtypes[item.name],
                chunks=chunk_shape(item, sizes),
                **_FILTERS,
            )
            put_text(dataset, "long_name", item.description)
            put_text(dataset, "units", item.units)
            created[item.name] = dataset
        created["step"].make_scale("step")
        scales["step"] = created["step"]
        for item in self._fields:
            if item.name != "step":
                for axis, name in enumerate(item.dims):
                    created[item.name].dims[axis].attach_scale(scales[name])
        flags = list(Status)
        created["status"].attrs["flag_masks"] = np.array([int(flag) for flag in flags], dtype="u1")
        put_text(created["status"], "flag_meanings", " ".join(str(flag.name).lower() for flag in flags))
        if header.densities:
            create_density(file, scales["parameter"])
        create_recent(file, self._record())
        file.attrs[header_sum.NAME] = np.uint32(header_sum.header_sum(file))

    def _check_same_run(self) -> None:
        """Refuse to continue the trace of another model, other points or another set of datasets."""
        from lsmooth.trace.reader import Trace

        header = self._header
        with Trace(self._place) as old:
            differences: list[str] = []
            if old.parameters != list(header.parameters):
                differences.append(_first_difference("parameter tensors", old.parameters, list(header.parameters)))
            elif old.parameter_sizes.tolist() != list(header.parameter_sizes):
                position = next(i for i, size in enumerate(header.parameter_sizes) if size != old.parameter_sizes[i])
                differences.append(
                    f"{header.parameters[position]} has {old.parameter_sizes[position]} elements there and "
                    f"{header.parameter_sizes[position]} here"
                )
            if old.gammas.tolist() != list(header.gammas):
                differences.append(f"its gammas are {_numbers(old.gammas)}, this run's are {_numbers(header.gammas)}")
            names = [item.name for item in self._fields if item.since == FIRST_FORMAT or old.has(item.name)]
            theirs = [item.name for item in FIELDS if old.has(item.name)]
            if names != theirs:
                odd = ", ".join(sorted(set(names) ^ set(theirs)))
                differences.append(f"only one of the two has {odd}")
            elif old.coordinate_names != list(header.coordinate_names):
                differences.append("it follows other coordinates (another seed?)")
            if old.has_densities != header.densities:
                differences.append("only one of the two keeps densities")
            if old.read("grad_norm", slice(0, 0)).dtype != np.dtype(header.real):
                differences.append(f"its norms are not {header.real}, as this model's are")
            if old.read("lr", slice(0, 0)).shape[1] != header.groups:
                differences.append("its optimizer has another number of parameter groups")
            if differences:
                raise TraceError(
                    f"{self.path} cannot be continued by this run: {'; '.join(differences)}. "
                    "Choose another file, or mode='w' to replace it."
                )
            self._whole = len(old)
            self.next_step = old.next_step
            self.seconds = float(old.time[-1]) if len(old) else 0.0
            self.density = old.density_counts() if header.densities else None


def _rename_without_replacing(source: Path, target: Path, name: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise _exists(name) from None
    except OSError:
        # A file system without hard links: whoever creates the empty file first may replace it.
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            raise _exists(name) from None
        source.replace(target)


def _reserve(descriptor: int, size: int) -> None:
    """Claim disk space for so many bytes behind a file's end, before HDF5 changes anything that could not be finished.

    Raises:
        OSError: There is no room.
    """
    end = os.fstat(descriptor).st_size
    size += size // 8 + _INDEX_BYTES
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, end, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    # A system that promises no space: the file gets its length, at least.
    os.ftruncate(descriptor, end + size)


# How many files that HDF5 was made to leave open a process may come upon.
_MOST_LEFT_OPEN = 64


def _redirect(descriptor: int) -> None:
    """Let a descriptor lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


def _leave_open(file: h5py.File, datasets: Mapping[str, h5py.Dataset]) -> None:
    """Keep h5py from ever closing a file: the parent's in a forked process, or one that HDF5 could not write to."""
    for item in (file, *datasets.values()):
        item.id.locked = True


def _exists(path: Path) -> TraceError:
    return TraceError(
        f"{path} exists already; choose another name, or mode='w' to replace it, or mode='a' to continue it."
    )


# What the system says of a path that is none for a file.
_MISTAKES = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


def _system_number(error: Exception) -> int | None:
    """Return the system's number of an error, which HDF5 may pass on among its own words; None if it is not its."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = re.search(r"errno = (\d+)", str(error))
    return int(said[1]) if said else None


def _reason(error: Exception) -> str:
    """Return why something could not be written, in the system's words where HDF5 passes them on among its own."""
    text = str(error)
    if said := re.search(r"error message = '([^']+)'", text):
        return said[1]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text.split("\n")[0] or type(error).__name__


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _scale(parent: h5py.Group, name: str, values: NDArray[Any], meaning: str) -> h5py.Dataset:
    dataset = parent.create_dataset(name, data=values, chunks=(max(1, len(values)),), **_FILTERS)
    dataset.make_scale(name)
    put_text(dataset, "long_name", meaning)
    if values.dtype.kind == "f":
        put_text(dataset, "units", "1")
    if values.dtype.kind == "S":
        # By this netCDF readers know text from bytes.
        put_text(dataset, "_Encoding", "utf-8")
    return dataset


def _text(names: tuple[str, ...]) -> NDArray[Any]:
    # Strings of fixed length lie in the dataset itself, under its checksum; every netCDF reader takes them.
    encoded = [name.encode("utf-8") for name in names]
    width = max([1, *map(len, encoded)])
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def _first_difference(what: str, theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} {what}, this run has {len(ours)}"
    position = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"it has {theirs[position]} where this run has {ours[position]}"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


# Those at work in this process: a forked one must not write to their files.
_WRITERS: weakref.WeakSet[TraceWriter] = weakref.WeakSet()


def _forget_all() -> None:
    for writer in list(_WRITERS):
        writer.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class BackgroundWriter:
    """Runs a `TraceWriter` on a thread of its own, so that a slow disk never holds up a training step.

    A block that cannot be written (disk full, folder gone) ends the recording, not the training; a writer that the
    system refused from the start does not begin it. Blocks that a stalled disk does not take wait in memory, up to
    `QUEUE_BYTES`; further ones are dropped until it takes some again. `problems` then says what happened, once.

    Args:
        writer: Whom the blocks are for.

    Attributes:
        failure: Why nothing more is written, None while it is.
    """

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting = 0
        self._waiting_lock = threading.Lock()
        self._dropped: list[int] = []
        self._next_step: int | None = None
        self.failure = writer.refusal
        if self.failure is not None:
            self._problems.put(f"Nothing of this run is recorded, and training goes on: {self.failure}")
        self._thread = threading.Thread(target=self._run, name="lsmooth-writer", daemon=True)
        self._thread.start()

    def put(self, block: Any, size: int = 0, steps: Sequence[int] = ()) -> None:
        """Hand over a block, or drop it where too much waits already.

        Args:
            block: A callable that returns the arguments for `TraceWriter.append`, called on the thread.
            size: Bytes that it keeps in memory until then.
            steps: Optimizer steps in it.
        """
        if self.failure is not None:
            return
        with self._waiting_lock:
            full = self._waiting > 0 and self._waiting + size > QUEUE_BYTES
            if not full:
                self._waiting += size
        if full:
            if not self._dropped:
                self._problems.put(
                    f"{self._writer.path}: the disk has not taken the {QUEUE_BYTES / 1e6:.0f} MB of measurements that "
                    f"wait for it, and those from step {steps[0]} on are dropped until it does; training goes on."
                )
            self._dropped += steps
            return
        self._tell_dropped()
        self._queue.put((block, size))

    def problems(self) -> list[str]:
        """Return the sentences about what went wrong, each once; none while all is well."""
        return [self._problems.get() for _ in range(self._problems.qsize())]

    def wait(self) -> None:
        """Return when all that was handed over is in the file."""
        done = threading.Event()
        self._queue.put((done, 0))
        # In a forked process there is no such thread.
        while self._thread.is_alive() and not done.wait(1.0):
            pass

    def close(self, next_step: int | None = None) -> None:
        """Write what is left and close the file; see `TraceWriter.close`."""
        self._next_step = next_step
        self._queue.put((None, 0))
        self._thread.join()
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        dropped, self._dropped = self._dropped, []
        if dropped:
            self._problems.put(
                f"{self._writer.path} lacks {len(dropped)} measured steps, {dropped[0]} to {dropped[-1]}, which came "
                "while the disk took nothing."
            )

    def _run(self) -> None:
        while True:
            block, size = self._queue.get()
            if isinstance(block, threading.Event):
                block.set()
                continue
            try:
                if block is None:
                    self._writer.close(self._next_step)
                    return
                if self.failure is None:
                    self._writer.append(*block())
            except Exception as error:
                self._fail(error)
                if block is None:
                    return
            finally:
                # No block is kept alive while the next is waited for.
                block = None
                with self._waiting_lock:
                    self._waiting -= size

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            failure = f"{self._writer.path} cannot be written any more ({_reason(error)})"
            self._problems.put(
                f"{failure}: measurements from here on are not recorded, training goes on, and what was written stays "
                "readable."
            )
            self.failure = f"{failure}."
