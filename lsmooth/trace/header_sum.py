"""A checksum over what a trace says about itself.

HDF5 keeps attributes of more than 64 KiB (the shapes of some 5,000 tensors) and datasets without chunks (the edges of
densities) without a checksum. A flipped bit there is told by nothing else.
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
# Tables that are whole from the start; datasets along `step` grow, and enter with their kind and shape alone.
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


def header_sum(file: h5py.File) -> int:
    """Return the CRC-32 of a trace's root attributes, names along its dimensions, and kinds and shapes of datasets."""
    facts: list[Any] = [[name, value] for name, value in sorted(get_attributes(file).items()) if name != NAME]
    facts += [[name, _values(file[name])] for name in _TABLES if name in file]
    growing: list[Any] = []

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.maxshape[:1] == (None,):
            growing.append([name, item.dtype.str, item.shape[1:]])

    file.visititems(look)
    facts += sorted(growing)
    facts.append(get_attribute(file[RECENT_GROUP], "record"))
    return zlib.crc32(json.dumps(facts, default=_text).encode())


def _values(table: h5py.Dataset) -> list[Any]:
    return read_names(table) if table.dtype.kind == "S" else table[:].tolist()


def _text(value: Any) -> Any:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
