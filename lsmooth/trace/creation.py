"""Creates a trace file: laid out under a temporary name, locked, and renamed when it is complete."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import TraceError
from lsmooth.trace import disk, header_sum
from lsmooth.trace.attributes import put_text
from lsmooth.trace.density import create_density, density_bytes
from lsmooth.trace.growing import GrowingFile, leave_open
from lsmooth.trace.header import Header
from lsmooth.trace.layout import CHUNK_STEPS, COMMENT, COORDINATE_GROUP, FORMAT, Status, chunk_shape
from lsmooth.trace.lock import lock_as_writer, open_hdf5, unlock
from lsmooth.trace.names import create_names, number_dimensions
from lsmooth.trace.recent import create_recent, dtype_of

_FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}
# Upper bound on files that HDF5 failed to close in one process.
_MOST_LEFT_OPEN = 64


def already_exists(path: Path) -> TraceError:
    """Return the error for a path where a file exists."""
    return TraceError(
        f"{path} exists already; choose another name, or mode='w' to replace it, or mode='a' to continue it."
    )


def create(
    place: Path, path: Path, header: Header, *, replace: bool, fill: Callable[[GrowingFile], None] | None = None
) -> GrowingFile:
    """Write a new file beside a path, lock it, fill it, and rename it to the path.

    Args:
        place: The path, with links resolved.
        path: The path as the user gave it, for errors.
        header: The header of the trace.
        replace: Whether a file at the path, which this process has locked, is to be replaced.
        fill: Writes the first rows into the file before it is renamed; None for no rows.

    Raises:
        TraceError: A file has appeared at the path meanwhile, and `replace` is false.
        OSError: The disk is full, or writing there is not permitted.
    """
    lock: int | None = None
    temporaries: list[Path] = []
    try:
        file = _new_file(place, header, temporaries)
        descriptor = file.id.get_vfd_handle()
        try:
            lay_out(file, header)
            file.swmr_mode = True
            file.flush()
            lock = lock_as_writer(temporaries[-1])
            growing = GrowingFile(file, header, lock, place.parent)
        except BaseException:
            disk.redirect(descriptor)
            leave_open(file)
            if lock is not None:
                unlock(lock)
            raise
        try:
            if fill is not None:
                fill(growing)
                growing.outlast()
            if replace:
                temporaries[-1].replace(place)
            else:
                disk.rename_without_replacing(temporaries[-1], place)
            if fill is not None:
                disk.sync_folder(place.parent)
        except BaseException as error:
            growing.discard()
            if isinstance(error, FileExistsError):
                raise already_exists(path) from None
            raise
        return growing
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _new_file(place: Path, header: Header, temporaries: list[Path]) -> h5py.File:
    """Create a file beside a path, and add its name to `temporaries`, in which the last name is that of the file."""
    while True:
        # Only the beginning of the name, since a longer name might exceed the limit of the file system.
        handle, name = tempfile.mkstemp(prefix=f".{place.name[:32]}.", dir=place.parent)
        temporaries.append(Path(name))
        try:
            # HDF5 would crash if the disk were full before the file is complete.
            disk.reserve(handle, _first_bytes(header))
        finally:
            os.close(handle)
        os.chmod(name, 0o666 & ~disk.umask())
        try:
            # Structures of HDF5 1.10, the first version with SWMR: HDF5 1.x, which h5dump, netCDF and MATLAB use,
            # cannot read those of 2.0. No cache of chunks, since each chunk is written once, whole, and datasets stay
            # open as long as the run lasts.
            return open_hdf5(name, "w", libver=("v110", "v110"), track_order=True, rdcc_nbytes=0)
        except OSError as error:
            # HDF5 tells files apart by inode number, and still counts a file as open that it could not write to. The
            # system may give the inode number of a deleted file to a new one. While this file exists, the next
            # temporary file has another number.
            if "already open" not in str(error) or len(temporaries) > _MOST_LEFT_OPEN:
                raise


def _first_bytes(header: Header) -> int:
    """Return the approximate size in bytes of a trace before its first step."""
    names = (*header.parameters, *header.coordinate_names)
    counts = density_bytes(len(header.parameters)) if header.densities else 0
    return CHUNK_STEPS * header.record().itemsize + counts + 64 * len(names) + sum(map(len, names)) + disk.INDEX_BYTES


def lay_out(file: h5py.File, header: Header) -> None:
    """Write everything but rows into an empty file.

    Args:
        file: The empty file.
        header: The header of the trace.
    """
    put_text(file, "format", FORMAT)
    put_text(file, "format_version", header.format_version)
    put_text(file, "Conventions", "CF-1.10")
    put_text(file, "comment", COMMENT)
    for name, value in header.attributes.items():
        if isinstance(value, (int, float)):
            file.attrs[name] = value
        else:
            put_text(file, name, value if isinstance(value, str) else json.dumps(value))
    scales = _create_scales(file, header)
    _create_fields(file, header, scales)
    if header.densities:
        create_density(file, scales["parameter"])
    create_recent(file, header.record(), header.format_version)
    number_dimensions(file)
    file.attrs[header_sum.NAME] = np.uint32(header_sum.header_sum(file))


def _create_scales(file: h5py.File, header: Header) -> dict[str, h5py.Dataset]:
    """Create all dimension scales except `step`, and the tables along them; return the scales by name."""
    gammas = np.asarray(header.gammas, np.float64)
    scales = {
        "gamma": _scale(file, "gamma", gammas, "position between x_t (0) and x_{t+1} (1)"),
        "parameter": _names(file, "parameter", header.parameters, header, "name of the parameter tensor"),
        "group": _scale(file, "group", np.arange(header.groups, dtype=np.int64), "parameter group of the optimizer"),
    }
    meaning = "number of elements of the parameter tensor"
    size = _table(file, "parameter_size", header.parameter_sizes, meaning, scales["parameter"])
    put_text(size, "units", "1")
    if header.coordinate_names:
        folder = file.create_group(COORDINATE_GROUP, track_order=True)
        put_text(folder, "long_name", "single coordinates of the parameters, followed through the run")
        scale = _names(folder, "coordinate", header.coordinate_names, header, "parameter[index]")
        scales["coordinate"] = scale
        _table(folder, "parameter", header.coordinate_owners, "position along the dimension `parameter`", scale)
        _table(folder, "index", header.coordinate_indices, "position in the flattened tensor", scale)
    return scales


def _create_fields(file: h5py.File, header: Header, scales: dict[str, h5py.Dataset]) -> None:
    """Create the datasets along `step`, with no rows."""
    sizes = header.sizes()
    created: dict[str, h5py.Dataset] = {}
    for item in sorted(header.fields(), key=lambda item: item.name != "step"):
        shape = (0, *(sizes[name] for name in item.dims[1:]))
        dataset = file.create_dataset(
            item.name,
            shape=shape,
            maxshape=(None, *shape[1:]),
            dtype=dtype_of(item, header.real),
            chunks=chunk_shape(item, sizes),
            **_FILTERS,
        )
        put_text(dataset, "long_name", item.description)
        put_text(dataset, "units", item.units)
        created[item.name] = dataset
    created["step"].make_scale("step")
    scales["step"] = created["step"]
    for item in header.fields():
        if item.name != "step":
            for axis, name in enumerate(item.dims):
                created[item.name].dims[axis].attach_scale(scales[name])
    masks = created["status"].dtype
    flags = [flag for flag in Status if flag <= np.iinfo(masks).max]
    created["status"].attrs["flag_masks"] = np.array([int(flag) for flag in flags], dtype=masks)
    put_text(created["status"], "flag_meanings", " ".join(str(flag.name).lower() for flag in flags))


def _scale(parent: h5py.Group, name: str, values: NDArray[Any], meaning: str) -> h5py.Dataset:
    dataset = parent.create_dataset(name, data=values, chunks=(max(1, len(values)),), **_FILTERS)
    dataset.make_scale(name)
    put_text(dataset, "long_name", meaning)
    if values.dtype.kind == "f":
        put_text(dataset, "units", "1")
    return dataset


def _table(
    parent: h5py.Group, name: str, values: Sequence[int] | NDArray[np.int64], meaning: str, scale: h5py.Dataset
) -> h5py.Dataset:
    numbers = np.asarray(values, np.int64)
    dataset = parent.create_dataset(name, data=numbers, chunks=numbers.shape, **_FILTERS)
    put_text(dataset, "long_name", meaning)
    dataset.dims[0].attach_scale(scale)
    return dataset


def _names(parent: h5py.Group, name: str, names: tuple[str, ...], header: Header, meaning: str) -> h5py.Dataset:
    dataset = create_names(parent, name, names, header.format_version, _FILTERS)
    put_text(dataset, "long_name", meaning)
    return dataset
