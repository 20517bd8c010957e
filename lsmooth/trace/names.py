"""Names along a dimension, kept in its scale as characters: each a row of UTF-8 bytes, padded with zeros.

All netCDF tools read characters as text, and HDF5 keeps them under the checksum of their chunk. Until format 1.1 names
were strings of fixed length, which only some tools decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from lsmooth.trace.attributes import printable, put_text
from lsmooth.trace.layout import version_number
from lsmooth.trace.recent import create_dimension

CHARACTERS_SINCE = "1.2"


def create_names(
    parent: h5py.Group, name: str, names: Sequence[str], version: str, filters: dict[str, Any]
) -> h5py.Dataset:
    """Create a dimension scale of names.

    Args:
        parent: The group to create it in.
        name: Name of the dimension.
        names: The names along the dimension.
        version: The trace's format.
        filters: Keyword arguments of `create_dataset` for compression.
    """
    encoded = [text.encode("utf-8") for text in names]
    width = max([1, *map(len, encoded)])
    texts = np.array(encoded, dtype=h5py.string_dtype("utf-8", width))
    chars = version_number(version) >= version_number(CHARACTERS_SINCE)
    values = np.array(encoded, dtype=f"S{width}").view("S1").reshape(len(encoded), width) if chars else texts
    dataset = parent.create_dataset(name, data=values, chunks=tuple(max(1, size) for size in values.shape), **filters)
    dataset.make_scale(name)
    # This attribute tells netCDF readers that the characters are text.
    put_text(dataset, "_Encoding", "utf-8")
    if chars:
        create_dimension(parent, f"{name}_character", width)
    return dataset


def read_names(dataset: h5py.Dataset) -> list[str]:
    """Return the names along a dimension in any format, without control characters.

    Raises:
        ValueError: The names are no valid UTF-8, or one occurs twice.
    """
    values = dataset[:]
    if values.ndim == 2:
        values = np.ascontiguousarray(values).view(f"S{values.shape[1]}")[:, 0]
    names = [printable(value.decode("utf-8")) for value in values.tolist()]
    if len(set(names)) < len(names):
        raise ValueError(f"{dataset.name} has a name twice")
    return names


def number_dimensions(file: h5py.File) -> None:
    """Number all dimension scales, and give each scale of characters the numbers of its two dimensions.

    NetCDF needs these numbers to find the dimensions of a scale of characters.
    """
    scales: dict[str, h5py.Dataset] = {}

    def look(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.is_scale:
            item.attrs["_Netcdf4Dimid"] = np.int32(len(scales))
            scales[path] = item

    file.visititems(look)
    numbers = {path: number for number, path in enumerate(scales)}
    for path, scale in scales.items():
        if f"{path}_character" in scales:
            scale.attrs["_Netcdf4Coordinates"] = np.array([numbers[path], numbers[f"{path}_character"]], "i4")
