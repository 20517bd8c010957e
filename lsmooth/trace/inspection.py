"""Checks a trace from an unknown source against the tables of the layout, before any value is used.

An HDF5 file can refer to other files (external links, external storage, virtual datasets), load plugins (filters),
claim any size, and nest groups without end. A trace does none of that. Violations are refused here, once, before a
value is read. Later formats may have further datasets, which must be as harmless.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from lsmooth.errors import TraceError
from lsmooth.trace import layout
from lsmooth.trace.chunk_index import claimed_chunks
from lsmooth.trace.density import BINS_PER_DECADE, COPIES, GRAD_DECADES, SMOOTHNESS_DECADES
from lsmooth.trace.disk import read_at
from lsmooth.trace.layout import CHUNK_STEPS, DENSITY_GROUP, RECENT_GROUP, chunk_shape, fields_of
from lsmooth.trace.recent import closed_items, dtype_of

# Limits far above those of any trace.
_MOST_OBJECTS = 1000
_DEEPEST = 3
_MOST_ATTRIBUTES = 1000
_RANK = 4
# Fewest bytes of a chunk, with its entry in the index.
_LEAST_CHUNK = 16
_FILTERS = frozenset({h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32})
# The highest possible compression ratio of deflate.
_MOST_DEFLATED = 1032
# A chunk of this size is harmless whatever the file's own size.
_HARMLESS_BYTES = 1 << 20
# Tables are read whole when a file is opened. They may have this many bytes, plus this many times the file's size.
_HARMLESS_TABLE = 1 << 26
_MOST_TABLE = 8
_CLASSES = frozenset({h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING})
_INTEGER = np.dtype("<i8")
_FLOAT = np.dtype("<f8")


def inspect(file: h5py.File, path: Path, version: str) -> dict[str, h5py.Dataset]:
    """Check that a file is as a recorder writes it, and return its datasets by path.

    Args:
        file: The open file, of which only `format` and `format_version` have been read.
        path: Path of the file.
        version: Format of the trace.

    Raises:
        TraceError: Something is not as in a trace.
        KeyError, OSError, RuntimeError, ValueError: The file is damaged.
    """
    try:
        size = os.stat(path).st_size
        datasets = _datasets(file, size)
        _check_tables(datasets, _sizes(datasets), version, _HARMLESS_TABLE + _MOST_TABLE * size)
        _check_fields(datasets, _sizes(datasets), version)
        _check_indexes(datasets, path, size)
        return datasets
    except _UnlikeATraceError as error:
        raise TraceError(
            f"{path} is not as a Recorder writes traces: {error}; use the file that the run wrote."
        ) from None


class _UnlikeATraceError(Exception):
    """Something is not as in a trace; the argument says what."""


def _require(fine: bool, what: str) -> None:
    if not fine:
        raise _UnlikeATraceError(what)


# --- everything that the file holds, known or not ---


def _datasets(file: h5py.File, size: int) -> dict[str, h5py.Dataset]:
    """Return all datasets by path; links to elsewhere are refused, and never opened."""
    found: dict[str, h5py.Dataset] = {}
    _check_attributes(file.id, "the file")
    for path, item in _objects(file.id):
        _check_attributes(item, path)
        if isinstance(item, h5py.h5d.DatasetID):
            _check_storage(item, path, size)
            found[path] = h5py.Dataset(item)
    return found


def _objects(root: h5py.h5g.GroupID) -> Iterator[tuple[str, h5py.h5d.DatasetID | h5py.h5g.GroupID]]:
    count = 0
    waiting: list[tuple[str, h5py.h5g.GroupID, int]] = [("", root, 1)]
    while waiting:
        prefix, group, depth = waiting.pop()
        for name in _hard_links(group, prefix):
            count += 1
            _require(count <= _MOST_OBJECTS, "it holds too many objects")
            path = prefix + name.decode("utf-8")
            item = h5py.h5o.open(group, name)
            if isinstance(item, h5py.h5g.GroupID):
                _require(depth < _DEEPEST, f"{_short(path)} is a group too deep inside others")
                waiting.append((f"{path}/", item, depth + 1))
            else:
                _require(isinstance(item, h5py.h5d.DatasetID), f"{_short(path)} is neither a dataset nor a group")
            yield path, item


def _hard_links(group: h5py.h5g.GroupID, prefix: str) -> list[bytes]:
    names: list[bytes] = []
    elsewhere: list[bytes] = []

    def look(name: bytes, info: h5py.h5l.LinkInfo) -> bool | None:
        (names if info.type == h5py.h5l.TYPE_HARD else elsewhere).append(name)
        return True if elsewhere or len(names) > _MOST_OBJECTS else None

    group.links.iterate(look, info=True)
    if elsewhere:
        raise _UnlikeATraceError(f"{_short(prefix + elsewhere[0].decode('utf-8'))} is a link to something else")
    return names


def _check_attributes(item: h5py.h5g.GroupID | h5py.h5d.DatasetID, path: str) -> None:
    _require(h5py.h5a.get_num_attrs(item) <= _MOST_ATTRIBUTES, f"{_short(path)} has too many attributes")


def _check_storage(item: h5py.h5d.DatasetID, path: str, size: int) -> None:
    """Refuse storage outside of the file, other filters, and sizes that the file cannot hold."""
    name = _short(path)
    plan = item.get_create_plist()
    kind = plan.get_layout()
    _require(kind in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED), f"{name} is made of other datasets")
    _require(plan.get_external_count() == 0, f"{name} lies in another file")
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    _require(_FILTERS.issuperset(filters), f"{name} needs a filter that traces do not have")
    _require(len(filters) == len(set(filters)), f"{name} goes through one filter twice")
    numbers = item.get_type()
    _require(numbers.get_class() in _CLASSES, f"{name} holds neither numbers nor texts")
    if numbers.get_class() == h5py.h5t.STRING:
        _require(not numbers.is_variable_str(), f"{name} has texts of variable length")
    _require(item.rank <= _RANK, f"{name} has too many dimensions")
    held = math.prod(item.shape) * numbers.get_size()
    if kind == h5py.h5d.CHUNKED:
        most = _MOST_DEFLATED * size + _HARMLESS_BYTES
        chunk = math.prod(plan.get_chunk()) * numbers.get_size()
        _require(chunk <= most, f"a chunk of {name} is larger than the file could hold")
        _require(held <= most, f"{name} claims more values than the file could hold")
    elif item.get_storage_size():
        # A dataset without storage is a dimension without values, which is never read.
        _require(held <= size, f"{name} is larger than the file")


def _short(path: str) -> str:
    return repr(path if len(path) <= 60 else f"{path[:57]}...")


# --- what a trace holds ---


def _sizes(datasets: dict[str, h5py.Dataset]) -> dict[str, int]:
    """Return the length of every dimension except `step`."""
    scales = {"gamma": "gamma", "parameter": "parameter", "group": "group", "coordinate": "coordinate/coordinate"}
    found = {}
    for name, path in scales.items():
        if name != "coordinate" or path in datasets:
            _require(path in datasets, f"it has no {path}")
            _require(datasets[path].ndim > 0, f"{path} has no dimension")
        found[name] = len(datasets[path]) if path in datasets else 0
    return found


def _check_tables(datasets: dict[str, h5py.Dataset], sizes: dict[str, int], version: str, most: int) -> None:
    """Check dtype, shape and size (at most `most` bytes) of the tables that are not along `step`."""
    tables = {
        "gamma": (_FLOAT, ("gamma",)),
        "group": (_INTEGER, ("group",)),
        "parameter_size": (_INTEGER, ("parameter",)),
    }
    names = ["parameter"]
    if "coordinate/coordinate" in datasets:
        names.append("coordinate/coordinate")
        tables |= {"coordinate/parameter": (_INTEGER, ("coordinate",)), "coordinate/index": (_INTEGER, ("coordinate",))}
    for path in (*tables, *names):
        _require(path in datasets, f"it has no {path}")
        _require(datasets[path].nbytes <= most, f"{path} is larger than in any trace")
    for path, (kind, dims) in tables.items():
        _check_kind(datasets, path, kind, tuple(sizes[name] for name in dims))
    for path in names:
        texts = datasets[path]
        _require(texts.dtype.kind == "S", f"{path} holds no names")
        _require(texts.ndim == 1 or (texts.ndim == 2 and texts.dtype.itemsize == 1), f"{path} holds no list of names")
        _require(texts.shape[-1] > 0, f"{path} holds no names")
    _require(f"{RECENT_GROUP}/rows" in datasets, f"it has no {RECENT_GROUP}/rows")
    slots = datasets[f"{RECENT_GROUP}/rows"].shape
    _check_kind(datasets, f"{RECENT_GROUP}/rows", np.dtype("u1"), (CHUNK_STEPS, *slots[1:2]))
    _check_kind(datasets, f"{RECENT_GROUP}/closed", _INTEGER, (closed_items(version) + 1,))
    if f"{DENSITY_GROUP}/counts" in datasets:
        bins = [BINS_PER_DECADE * (high - low) for low, high in (GRAD_DECADES, SMOOTHNESS_DECADES)]
        _check_kind(datasets, f"{DENSITY_GROUP}/counts", _INTEGER, (COPIES, sizes["parameter"], *bins))
        _check_kind(datasets, f"{DENSITY_GROUP}/note", _INTEGER, (COPIES, 3))
        for name, count in zip(("grad_edge", "smoothness_edge"), bins, strict=True):
            _check_kind(datasets, f"{DENSITY_GROUP}/{name}", _FLOAT, (count + 1,))


def _check_kind(datasets: dict[str, h5py.Dataset], path: str, kind: np.dtype, shape: tuple[int, ...]) -> None:
    _require(path in datasets, f"it has no {path}")
    _require(datasets[path].dtype == kind, f"{path} has numbers of another kind")
    _require(datasets[path].shape == shape, f"{path} has another shape")


def _check_fields(datasets: dict[str, h5py.Dataset], sizes: dict[str, int], version: str) -> None:
    """Check that all datasets along `step` are there, and as the table of fields has them."""
    expected = fields_of(_measured(datasets), version)
    names = [field.name for field in expected]
    for field in layout.FIELDS:
        _require(field.name not in datasets or field.name in names, f"{field.name} is there without what it belongs to")
    _require("grad_norm" in datasets, "it has no grad_norm")
    real = datasets["grad_norm"].dtype.name
    _require(real in ("float32", "float64"), "grad_norm has numbers of another kind")
    for field in expected:
        if field.name not in datasets:
            # Fields of later formats may be missing; reading them raises an error.
            _require(field.since != layout.FIRST_FORMAT, f"it has no {field.name}")
            continue
        dataset = datasets[field.name]
        kinds = [dtype_of(field, real)]
        if field.name == "status":
            # Traces from the time when format 1.2 was being made have only the first eight flags.
            kinds.append(np.dtype("u1"))
        _require(dataset.dtype in kinds, f"{field.name} has numbers of another kind")
        lengths = tuple(sizes[name] for name in field.dims[1:])
        _require(dataset.shape[1:] == lengths, f"{field.name} has not the dimensions {', '.join(field.dims)}")
        _require(
            dataset.chunks == chunk_shape(field, sizes) and dataset.maxshape == (None, *lengths),
            f"{field.name} is not cut into chunks as in a trace",
        )


def _check_indexes(datasets: dict[str, h5py.Dataset], path: Path, size: int) -> None:
    """Refuse indexes that claim more chunks than the file could hold, since HDF5 visits every claimed entry."""
    claimed = 0
    with open(path, "rb", buffering=0) as raw:
        start = read_at(raw.fileno(), 20, 0)
        _require(start[8:9] == b"\x03" and not any(start[12:20]), "its beginning is of another kind")
        for field in layout.FIELDS:
            if field.name in datasets:
                try:
                    claimed += claimed_chunks(raw.fileno(), h5py.h5o.get_info(datasets[field.name].id).addr)
                except ValueError as error:
                    raise _UnlikeATraceError(f"{field.name}: {error}") from None
    _require(claimed <= size // _LEAST_CHUNK + CHUNK_STEPS, "it claims more chunks than it could hold")


def _measured(datasets: dict[str, h5py.Dataset]) -> frozenset[str]:
    """Return what the run measured, judged by datasets with a single word in `Field.needs`."""
    return frozenset(
        field.needs for field in layout.FIELDS if field.needs and " " not in field.needs and field.name in datasets
    )
