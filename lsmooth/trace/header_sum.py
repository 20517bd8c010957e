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


def header_sum(file: h5py.File, datasets: dict[str, h5py.Dataset] | None = None) -> int:
    """Return the CRC-32 of a trace's root attributes, names along its dimensions, and kinds and shapes of datasets.

    Args:
        file: The open trace.
        datasets: All its datasets by path, where they are known.
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
