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
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.trace.layout import (
    COORDINATE_FIELDS,
    ENDPOINT_FIELDS,
    FIELDS,
    FORMAT,
    FORMAT_VERSION,
    NOISE_FIELDS,
    Field,
    Status,
    chunk_shape,
)
from lsmooth.trace.lock import lock_as_writer

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

    def fields(self) -> list[Field]:
        """Return the datasets that such a trace has, in the order in which they are appended."""
        left_out: set[str] = set()
        if not self.endpoint:
            left_out |= ENDPOINT_FIELDS
        if not self.noise:
            left_out |= NOISE_FIELDS
        if not self.coordinate_names:
            left_out |= COORDINATE_FIELDS
        return [item for item in FIELDS if item.name not in left_out]

    def sizes(self) -> dict[str, int]:
        """Return the length of every dimension but `step`."""
        return {
            "gamma": len(self.gammas),
            "parameter": len(self.parameters),
            "group": self.groups,
            "coordinate": len(self.coordinate_names),
        }


class TraceWriter:
    """The one writer of a trace file.

    Args:
        path: Where the trace goes.
        header: What stands in it before the first step.
        mode: "x" refuses an existing file, "w" replaces it, "a" continues the same run's trace.

    Raises:
        InvalidArgumentError: `mode` is none of these.
        TraceError: The file exists (mode "x"), is being written by another process, belongs to another run (mode
            "a"), or its folder is missing or cannot be written.

    Attributes:
        last_step: Optimizer step index of the last row that a continued trace holds, None for a new one.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, mode: Mode = "x") -> None:
        if mode not in ("x", "w", "a"):
            raise InvalidArgumentError(f"mode={mode!r} is none of 'x' (new file), 'w' (replace) and 'a' (continue).")
        self.path = Path(path)
        self._header = header
        self._fields = header.fields()
        self.last_step: int | None = None
        self._old: Path | None = None
        self._old_rows = 0
        parent = self.path.parent
        if not parent.is_dir():
            raise TraceError(f"There is no folder {parent} to write {self.path.name} into; create it first.")
        if mode == "x" and self.path.exists():
            raise _exists(self.path)
        self._lock: int | None = None
        self._file: h5py.File | None = None
        # Whoever holds the lock on the file at this path is its writer; a new file is locked before it gets the name.
        held = lock_as_writer(self.path) if mode != "x" and self.path.exists() else None
        try:
            if mode == "a" and self.path.exists():
                self._check_same_run()
                self._lock, held = held, None
            else:
                self._create(replace=mode != "x")
        finally:
            if held is not None:
                os.close(held)

    def keep_before(self, step: int) -> None:
        """Drop the rows of a continued trace from optimizer step `step` on; call it before the first `append`."""
        if self.last_step is None or self._file is not None:
            return
        from lsmooth.trace.reader import Trace

        with Trace(self.path) as old:
            self._old_rows = int(np.searchsorted(old.steps, step))

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append measured steps, one array a field (see `Header.fields`), steps along the first axis, and flush.

        Raises:
            OSError: The disk is full or gone.
        """
        self._begin()
        if self._file is None or self._lock is None:
            raise OSError(errno.EBADF, "it is closed")
        if not _same_file(self.path, self._lock):
            # Writes to a deleted file succeed, and are lost.
            raise OSError(errno.ENOENT, "it was moved or deleted")
        for item in self._fields:
            values = rows[item.name]
            dataset = self._file[item.name]
            start = dataset.shape[0]
            dataset.resize(start + len(values), axis=0)
            dataset[start:] = values
            # `step` comes last: what it counts is whole, whoever looks in between.
            if item.name == "step":
                self._file.flush()
        self._file.flush()

    def close(self) -> None:
        """Finish the file and give up the lock."""
        try:
            if self._lock is not None:
                self._begin()
        finally:
            if self._file is not None:
                file, self._file = self._file, None
                # After an error HDF5 may be unable to close the file in good order; what was flushed stays readable.
                with contextlib.suppress(OSError, RuntimeError, ValueError):
                    file.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _begin(self) -> None:
        """Start writing to a continued trace: a fresh file with the rows to keep takes the old one's place."""
        if self._file is not None or self.last_step is None:
            return
        from lsmooth.trace.reader import Trace

        with Trace(self.path) as old:
            rows = self._old_rows
            kept = {item.name: old.read(item.name, slice(0, rows)) for item in self._fields}
        old_lock, self._lock = self._lock, None
        try:
            self._create(replace=True, kept=kept)
        finally:
            if old_lock is not None:
                os.close(old_lock)

    def _create(self, *, replace: bool, kept: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Write a new file beside the path, lock it, and give it the name."""
        try:
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        except OSError as error:
            raise TraceError(
                f"{self.path} cannot be written: {error.strerror}; choose a folder that you may write to."
            ) from error
        os.close(handle)
        temporary = Path(name)
        try:
            os.chmod(temporary, 0o666 & ~_umask())
            file = h5py.File(temporary, "w", libver="latest", track_order=True, locking=False)
            try:
                self._lay_out(file)
                for item in self._fields:
                    if kept is not None and len(kept[item.name]):
                        file[item.name].resize(len(kept[item.name]), axis=0)
                        file[item.name][:] = kept[item.name]
                file.swmr_mode = True
                file.flush()
                lock = lock_as_writer(temporary)
                if replace:
                    temporary.replace(self.path)
                else:
                    _rename_without_replacing(temporary, self.path)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise TraceError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        finally:
            temporary.unlink(missing_ok=True)
        self._file, self._lock = file, lock

    def _lay_out(self, file: h5py.File) -> None:
        header = self._header
        sizes = header.sizes()
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["Conventions"] = "CF-1.10"
        for name, value in header.attributes.items():
            file.attrs[name] = value if isinstance(value, (str, int, float)) else json.dumps(value)
        scales = {
            "gamma": _scale(file, "gamma", np.asarray(header.gammas), "position between x_t and x_{t+1}"),
            "parameter": _scale(file, "parameter", _text(header.parameters), "name of the parameter tensor"),
            "group": _scale(file, "group", np.arange(header.groups), "parameter group of the optimizer"),
        }
        size = file.create_dataset(
            "parameter_size", data=np.asarray(header.parameter_sizes), chunks=(len(header.parameters),), **_FILTERS
        )
        size.attrs["long_name"] = "number of elements of the parameter tensor"
        size.dims[0].attach_scale(scales["parameter"])
        if header.coordinate_names:
            folder = file.create_group("coordinate", track_order=True)
            folder.attrs["long_name"] = "single coordinates of the parameters, followed through the run"
            scale = _scale(folder, "coordinate", _text(header.coordinate_names), "parameter[index]")
            scales["coordinate"] = scale
            for name, values, meaning in (
                ("parameter", header.coordinate_owners, "position along the dimension `parameter`"),
                ("index", header.coordinate_indices, "position in the flattened tensor"),
            ):
                dataset = folder.create_dataset(name, data=values, chunks=values.shape, **_FILTERS)
                dataset.attrs["long_name"] = meaning
                dataset.dims[0].attach_scale(scale)
        dtypes = {"int": "i8", "float64": "f8", "status": "u1", "real": header.real}
        created: dict[str, h5py.Dataset] = {}
        for item in sorted(self._fields, key=lambda item: item.name != "step"):
            shape = (0, *(sizes[name] for name in item.dims[1:]))
            dataset = file.create_dataset(
                item.name,
                shape=shape,
                maxshape=(None, *shape[1:]),
                dtype=dtypes[item.kind],
                chunks=chunk_shape(item, sizes),
                **_FILTERS,
            )
            dataset.attrs["long_name"] = item.description
            dataset.attrs["units"] = item.units
            created[item.name] = dataset
        created["step"].make_scale("step")
        scales["step"] = created["step"]
        for item in self._fields:
            if item.name != "step":
                for axis, name in enumerate(item.dims):
                    created[item.name].dims[axis].attach_scale(scales[name])
        flags = list(Status)
        created["status"].attrs["flag_masks"] = np.array([int(flag) for flag in flags], dtype="u1")
        created["status"].attrs["flag_meanings"] = " ".join(str(flag.name).lower() for flag in flags)

    def _check_same_run(self) -> None:
        """Refuse to continue the trace of another model, other points or another set of datasets."""
        from lsmooth.trace.reader import Trace

        header = self._header
        with Trace(self.path) as old:
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
            names = [item.name for item in self._fields]
            theirs = [item.name for item in FIELDS if old.has(item.name)]
            if names != theirs:
                odd = ", ".join(sorted(set(names) ^ set(theirs)))
                differences.append(f"only one of the two has {odd}")
            elif old.coordinate_names != list(header.coordinate_names):
                differences.append("it follows other coordinates (another seed?)")
            if old.read("lr").shape[1] != header.groups:
                differences.append("its optimizer has another number of parameter groups")
            if differences:
                raise TraceError(
                    f"{self.path} cannot be continued by this run: {'; '.join(differences)}. "
                    "Choose another file, or mode='w' to replace it."
                )
            self._old_rows = len(old)
            self.last_step = int(old.steps[-1]) if len(old) else -1


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _rename_without_replacing(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:
        # A file system without hard links: the check before is all there is.
        source.rename(target)


def _exists(path: Path) -> TraceError:
    return TraceError(
        f"{path} exists already; choose another name, or mode='w' to replace it, or mode='a' to continue it."
    )


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _scale(parent: h5py.Group, name: str, values: NDArray[Any], meaning: str) -> h5py.Dataset:
    dataset = parent.create_dataset(name, data=values, chunks=(max(1, len(values)),), **_FILTERS)
    dataset.make_scale(name)
    dataset.attrs["long_name"] = meaning
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


class BackgroundWriter:
    """Runs a `TraceWriter` on a thread of its own, so that a slow disk never holds up a training step.

    A block that cannot be written (disk full, folder gone) ends the recording, not the training: `problem` then says
    what happened, once.

    Args:
        writer: Whom the blocks are for.
    """

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._problem: str | None = None
        self.failed = False
        self._thread = threading.Thread(target=self._run, name="lsmooth-writer", daemon=True)
        self._thread.start()

    def put(self, block: Any) -> None:
        """Hand over a block: a callable that returns the rows for `TraceWriter.append`, called on the thread."""
        if not self.failed:
            self._queue.put(block)

    def problem(self) -> str | None:
        """Return the sentence about what went wrong, once; None while all is well."""
        problem, self._problem = self._problem, None
        return problem

    def wait(self) -> None:
        """Return when all that was handed over is in the file."""
        done = threading.Event()
        self._queue.put(done)
        done.wait()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            block = self._queue.get()
            if isinstance(block, threading.Event):
                block.set()
                continue
            try:
                if block is None:
                    self._writer.close()
                    return
                if not self.failed:
                    self._writer.append(block())
            except Exception as error:
                self._fail(error)
                if block is None:
                    return

    def _fail(self, error: Exception) -> None:
        if not self.failed:
            reason = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
            self._problem = (
                f"{self._writer.path} cannot be written any more ({reason}): measurements from here on are not "
                "recorded, training goes on, and what was written stays readable."
            )
        self.failed = True
