"""Opens a trace file, or refuses it in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.trace import disk, header_sum, layout
from lsmooth.trace.attributes import get_attribute, printable, read_metadata
from lsmooth.trace.chunks import all_chunks_within
from lsmooth.trace.inspection import inspect
from lsmooth.trace.layout import FORMAT, FORMAT_VERSION, version_number
from lsmooth.trace.lock import open_hdf5
from lsmooth.trace.names import read_names
from lsmooth.trace.superblock import Mended, missing_bytes, needs_mending

# Errors that HDF5, NumPy and Python raise on damaged data.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Contents:
    """The contents of a trace, apart from its rows.

    Attributes:
        format_version: The format that the trace was written in.
        metadata: The root attributes, decoded.
        parameters: Names of the parameter tensors.
        parameter_sizes: Number of elements of each parameter tensor, int64 (p,).
        gammas: Interpolation points, float64.
        coordinate_names: The followed coordinates.
        fields: The datasets along `step`, by name.
    """

    format_version: str
    metadata: dict[str, Any]
    parameters: list[str]
    parameter_sizes: NDArray[np.int64]
    gammas: NDArray[np.float64]
    coordinate_names: list[str]
    fields: dict[str, h5py.Dataset]


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn errors of HDF5 about a damaged or vanished file into a `TraceError`.

    Args:
        path: The file.
        what: The part that is read.

    Raises:
        TraceError: The part cannot be read.
    """
    try:
        yield
    except (TraceError, InvalidArgumentError):
        raise
    except MemoryError as error:
        raise TraceError(f"{path} cannot be read: {what} needs more memory than this process may have.") from error
    except _DAMAGE as error:
        if disk.is_of_the_system(error):
            raise _refused_by_the_system(path, error) from error
        reason = printable(str(error).strip("'\" ").split("\n")[0]) or type(error).__name__
        raise TraceError(
            f"{path} is damaged or incomplete: {what} cannot be read ({reason}); use a copy of it, or record again."
        ) from error


def open_file(path: Path) -> h5py.File:
    """Open the HDF5 file at a path.

    Raises:
        TraceError: The file does not exist, cannot be read, is no HDF5 file, or is damaged.
    """
    if not path.exists():
        raise TraceError(f"There is no file {path}; give the trace that a Recorder or `lsmooth train` wrote.")
    if path.is_dir():
        raise TraceError(f"{path} is a folder; give the trace file itself.")
    if not path.is_file():
        raise TraceError(f"{path} is not a regular file; give a trace that a Recorder or `lsmooth train` wrote.")
    try:
        with path.open("rb") as file:
            head = file.read(len(_SIGNATURE))
        # Read through a Python object, HDF5 does not recognise the file as one that it has open.
        missing, mend = missing_bytes(path), needs_mending(path) or disk.is_inherited(path)
    except OSError as error:
        raise _refused_by_the_system(path, error) from error
    if not head:
        raise TraceError(f"{path} is empty; give a trace that a Recorder or `lsmooth train` wrote.")
    if head != _SIGNATURE:
        raise TraceError(f"{path} is not an HDF5 file; give a trace that a Recorder or `lsmooth train` wrote.")
    try:
        # Not with swmr=True, which retries damaged structures for years.
        return h5py.File(Mended(path), "r") if mend else open_hdf5(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        if disk.is_of_the_system(error):
            raise _refused_by_the_system(path, error) from error
        if missing is not None:
            raise _cut_short(path, *missing) from error
        said = printable(str(error).splitlines()[0])
        raise TraceError(
            f"{path} is damaged and cannot be opened ({said}); use a copy of it, or record again."
        ) from error


def _refused_by_the_system(path: Path, error: Exception) -> TraceError:
    return TraceError(f"{path} cannot be read: {disk.reason(error)}.")


def _cut_short(path: Path, there: int, stated: int) -> TraceError:
    return TraceError(
        f"{path} is damaged: only {there} of its {stated} bytes are there; copy it again from its source."
    )


def check_format(file: h5py.File, path: Path) -> str:
    """Return the format version of a trace.

    Raises:
        TraceError: The file is no trace, or a trace of a newer major version.
        RuntimeError: The attributes are damaged.
        ValueError: The version is missing or malformed.
    """
    # Raises if the attributes are damaged; such a file may be a trace, and must not be called another kind of file.
    h5py.h5a.get_num_attrs(file.id)
    try:
        found = get_attribute(file, "format")
    except (KeyError, ValueError):
        found = None
    if found != FORMAT:
        raise TraceError(f"{path} is an HDF5 file, but not an lsmooth trace; give a file that a Recorder wrote.")
    version = str(get_attribute(file, "format_version"))
    if version_number(version)[0] > version_number(FORMAT_VERSION)[0]:
        writer = printable(str(get_attribute(file, "lsmooth_version")))[:40]
        raise TraceError(
            f"{path} has trace format {version}, this lsmooth reads up to {FORMAT_VERSION}; "
            f"upgrade lsmooth to {writer} or later to read it."
        )
    return version


def read_contents(file: h5py.File, path: Path) -> Contents:
    """Inspect a trace, and return its contents apart from its rows.

    Raises:
        TraceError: The file is no trace, is of a newer major version, is not as a recorder writes it, or is cut short.
        KeyError, OSError, RuntimeError, TypeError, ValueError: The file is damaged.
    """
    version = check_format(file, path)
    missing = missing_bytes(path)
    try:
        datasets = inspect(file, path, version)
        # A file that was copied while it grew may state a later end than it has, and still hold all chunks.
        fields = {field.name: datasets[field.name] for field in layout.FIELDS if field.name in datasets}
        whole = missing is None or all_chunks_within(fields.values(), missing[0])
    except (TraceError, OSError, RuntimeError, KeyError, ValueError) as error:
        if missing is None:
            raise
        raise _cut_short(path, *missing) from error
    if missing is not None and not whole:
        raise _cut_short(path, *missing)
    check_header_sum(file, datasets)
    return Contents(
        format_version=version,
        metadata=read_metadata(file),
        parameters=read_names(file["parameter"]),
        parameter_sizes=file["parameter_size"][:],
        gammas=file["gamma"][:],
        coordinate_names=read_names(file["coordinate/coordinate"]) if "coordinate/grad" in fields else [],
        fields=fields,
    )


def check_header_sum(file: h5py.File, datasets: dict[str, h5py.Dataset]) -> None:
    """Check that the header of a file, with all `datasets` by path, matches its checksum.

    Raises:
        ValueError: The header does not match.
    """
    if header_sum.header_sum(file, datasets) != get_attribute(file, header_sum.NAME):
        raise ValueError("it does not match its checksum")
