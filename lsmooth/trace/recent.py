"""The newest rows of a trace, which do not fill a chunk yet.

Writing a compressed chunk again with one more row would move it in the file, and leave a hole at its old place. So rows
wait in slots with a fixed place, each under its own checksum, until they fill a chunk. A row is written to its slot in
one write, without a change of HDF5's structures. `docs/trace-format.md` describes the slots.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsmooth.trace.attributes import get_attribute, put_text
from lsmooth.trace.disk import write_at
from lsmooth.trace.layout import CHUNK_STEPS, RECENT_GROUP, Field, version_number

_PLAIN_DTYPES = {"int": "<i8", "float64": "<f8", "uint8": "|u1", "uint16": "<u2"}
# The name by which netCDF marks a dimension without a variable.
_DIMENSION_ONLY = "This is a netCDF dimension but not a netCDF variable.%10d"
_CLOSED_ITEMS = ("rows", "next optimizer step", "sequence number of the densities or -1")
# Dtypes of numbers in a record, in NumPy's notation.
_KINDS = re.compile(r"<i8|<f4|<f8|<u4|<u2|\|u1")


@dataclass(frozen=True)
class Closed:
    """The note that a run leaves when it closes its file.

    Attributes:
        rows: Number of rows.
        next_step: The next optimizer step.
        density_sequence: Sequence number of the last densities; -1 without densities, None until format 1.1, which did
            not note it.
    """

    rows: int
    next_step: int
    density_sequence: int | None = None


def _still_open(size: int) -> list[int]:
    return [-1] * (size - 1) + [0]


def dtype_of(item: Field, real: str) -> np.dtype[Any]:
    """Return the dtype of a field in the file; `real` is "float32" or "float64"."""
    return np.dtype(_PLAIN_DTYPES.get(item.kind) or np.dtype(real).newbyteorder("<"))


def record_of(fields: Sequence[Field], sizes: Mapping[str, int], real: str) -> np.dtype[Any]:
    """Return the dtype of one slot: the row's number, the fields, and a CRC-32 of everything before it."""
    members = [(item.name, dtype_of(item, real), tuple(sizes[name] for name in item.dims[1:])) for item in fields]
    return np.dtype([("row", "<i8"), *members, ("crc32", "<u4")])


def create_recent(file: h5py.File, record: np.dtype[Any], version: str) -> None:
    """Lay out the group `recent` of a new file.

    Args:
        file: The new file.
        record: Dtype of a slot.
        version: The trace's format.
    """
    folder = file.create_group(RECENT_GROUP, track_order=True)
    put_text(folder, "long_name", "newest measured steps, which do not fill a chunk yet: row r is in slot r % slots")
    members = [[name, record[name].base.str, record[name].shape] for name in record.names or ()]
    put_text(folder, "record", json.dumps(members))
    scales = [create_dimension(folder, "slot", CHUNK_STEPS), create_dimension(folder, "byte", record.itemsize)]
    rows = create_in_place(folder, "rows", (CHUNK_STEPS, record.itemsize), "u1", "a record in each slot; see `record`")
    for axis, scale in enumerate(scales):
        rows.dims[axis].attach_scale(scale)
    items = _CLOSED_ITEMS[: closed_items(version)]
    size = len(items) + 1
    meaning = f"once the run has closed the file: {', '.join(items)}, CRC-32 of these"
    closed = create_in_place(folder, "closed", (size,), "<i8", meaning)
    closed[:] = _still_open(size)
    closed.dims[0].attach_scale(create_dimension(folder, "item", size))


def closed_items(version: str) -> int:
    """Return the number of items in the note of a closed trace, without the checksum."""
    return len(_CLOSED_ITEMS) if version_number(version) >= (1, 2) else 2


class RecentWriter:
    """Writes rows to their slots.

    Args:
        file: The open trace, with the group made by `create_recent`.
        record: Dtype of a slot.
        descriptor: The same file, open for writing.
    """

    def __init__(self, file: h5py.File, record: np.dtype[Any], descriptor: int) -> None:
        self._record = record
        self._descriptor = descriptor
        self._rows_at = file[f"{RECENT_GROUP}/rows"].id.get_offset()
        closed = file[f"{RECENT_GROUP}/closed"]
        self._closed_at = closed.id.get_offset()
        self._closed_items = len(closed) - 1

    def put(self, rows: Mapping[str, NDArray[Any]], first: int) -> None:
        """Write rows to consecutive slots; the first one is row `first` of the trace."""
        records = np.zeros(len(rows["step"]), self._record)
        records["row"] = np.arange(first, first + len(records))
        for name, values in rows.items():
            records[name] = values
        for i in range(len(records)):
            records["crc32"][i] = zlib.crc32(records[i].tobytes()[:-4])
        write_at(self._descriptor, records.tobytes(), self._rows_at + first % CHUNK_STEPS * self._record.itemsize)

    def mark_closed(self, closed: Closed) -> None:
        """Write the note that the run has closed the file."""
        sequence = -1 if closed.density_sequence is None else closed.density_sequence
        numbers = np.array([closed.rows, closed.next_step, sequence][: self._closed_items], "<i8").tobytes()
        write_at(self._descriptor, numbers + np.array([zlib.crc32(numbers)], "<i8").tobytes(), self._closed_at)


def read_recent(file: h5py.File, fields: Mapping[str, h5py.Dataset], rows: int) -> NDArray[Any]:
    """Return the records of the rows in slots, from row `rows` on, in order.

    A file that was copied while slots were written may lack a row and hold later ones; only the rows before the missing
    one are returned.

    Args:
        file: The open trace.
        fields: Datasets along `step`, by name.
        rows: Number of rows in the chunked datasets.

    Raises:
        ValueError: A row is damaged.
    """
    folder = file[RECENT_GROUP]
    record = _read_record(folder, fields)
    raw = folder["rows"][:]
    if raw.shape[1] != record.itemsize:
        raise ValueError("its slots do not have the size of their records")
    found: dict[int, NDArray[Any]] = {}
    # Rows of the next chunk do not count: a file copied while it was written may have them, but not yet this chunk.
    chunk_end = (rows // len(raw) + 1) * len(raw)
    records = raw.view(record)[:, 0]
    intact = [zlib.crc32(slot[:-4].tobytes()) == checksum for slot, checksum in zip(raw, records["crc32"], strict=True)]
    for i in range(len(records)):
        number = int(records["row"][i])
        # Leaves out slots that were never used, and the one that was being written when the run was killed.
        if rows <= number < chunk_end and number % len(records) == i and intact[i]:
            found[number] = records[i]
    kept: list[NDArray[Any]] = []
    while rows + len(kept) in found:
        kept.append(found[rows + len(kept)])
    if len(kept) < len(found):
        # The slot of the missing row must be empty, or hold an older row.
        missing = (rows + len(kept)) % len(records)
        if raw[missing].any() and not intact[missing]:
            raise ValueError(f"row {rows + len(kept)} does not match its checksum")
    return np.array(kept, record) if kept else np.empty(0, record)


def _read_record(folder: h5py.Group, fields: Mapping[str, h5py.Dataset]) -> np.dtype[Any]:
    """Return the dtype of a slot.

    Raises:
        ValueError: It is no record of numbers, or differs from the datasets.
    """
    members = [(str(name), str(kind), tuple(map(int, shape))) for name, kind, shape in _record_members(folder)]
    if not all(_KINDS.fullmatch(kind) and all(size >= 0 for size in shape) for _, kind, shape in members):
        raise ValueError("its records are not of numbers")
    record = np.dtype(members)
    names = record.names or ()
    if names[:1] != ("row",) or names[-1:] != ("crc32",) or record["row"] != "<i8" or record["crc32"] != "<u4":
        raise ValueError("its records have no number or no checksum")
    for name, dataset in fields.items():
        if name not in names or (record[name].base, record[name].shape) != (dataset.dtype, dataset.shape[1:]):
            raise ValueError(f"its records have not the same {name} as its datasets")
    return record


def _record_members(folder: h5py.Group) -> list[Any]:
    members = json.loads(get_attribute(folder, "record"))
    if not isinstance(members, list):
        raise ValueError("its records are no list")
    return members


def read_closed(file: h5py.File) -> Closed | None:
    """Return the note of a closed trace; None if the trace is not closed.

    Raises:
        ValueError: The note is damaged.
    """
    note = file[f"{RECENT_GROUP}/closed"][:]
    if note.tolist() == _still_open(len(note)):
        return None
    if zlib.crc32(note[:-1].astype("<i8").tobytes()) != note[-1]:
        raise ValueError("the note of how it was closed does not match its checksum")
    return Closed(*note[:-1].tolist())


def create_dimension(folder: h5py.Group, name: str, size: int) -> h5py.Dataset:
    """Create a dimension scale without values, which takes no space in the file."""
    dataset = folder.create_dataset(name, shape=(size,), dtype=">f4")
    dataset.make_scale(_DIMENSION_ONLY % size)
    return dataset


def create_in_place(folder: h5py.Group, name: str, shape: tuple[int, ...], dtype: str, meaning: str) -> h5py.Dataset:
    """Create a dataset whose bytes have a fixed place in the file."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(folder.id, name.encode(), kind, space, dcpl=plan))
    put_text(dataset, "long_name", meaning)
    return dataset
