"""A checksum of a trace's header.

HDF5 has no checksum for attributes of more than 64 KiB (the shapes of some 5,000 tensors) and for datasets without
chunks (the edges of densities). Only this checksum finds a flipped bit there.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import h5py

from lsmooth.trace.attributes import get_attribute, get_attributes
from lsmooth.trace.layout import RECENT_GROUP
from lsmooth.trace.names import read_names

NAME = "header_crc32"
# Tables that never grow, whose values enter the sum. Datasets along `step` enter with dtype and shape only.
_TABLES = (
    "gamma",
    "parameter",
    "group",
    "parameter_size",
    "coordinate/coordinate",
    "coordinate/parameter",
    "coordinate/index",
    "density/grad_edge",
    "density/smoothness_edge",
)


def header_sum(file: h5py.File, datasets: dict[str, h5py.Dataset] | None = None) -> int:
    """Return the CRC-32 of a trace's root attributes, tables, and dtypes and shapes of datasets along `step`.

    Args:
        file: The open trace.
        datasets: All datasets by path; found here if not given.
    """
    facts: list[Any] = [[name, value] for name, value in sorted(get_attributes(file).items()) if name != NAME]
    if datasets is None:
        datasets = {}
        file.visititems(lambda name, item: datasets.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    growing = [(name, item) for name, item in datasets.items() if item.maxshape[:1] == (None,)]
    facts += [[name, _values(datasets[name])] for name in _TABLES if name in datasets]
    facts += sorted([name, item.dtype.str, item.shape[1:]] for name, item in growing)
    facts.append(get_attribute(file[RECENT_GROUP], "record"))
    return zlib.crc32(json.dumps(facts, default=_text).encode())


def _values(table: h5py.Dataset) -> list[Any]:
    return read_names(table) if table.dtype.kind == "S" else table[:].tolist()


def _text(value: Any) -> Any:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
