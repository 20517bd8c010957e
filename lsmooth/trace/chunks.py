"""Finds chunks that a file lacks, for which HDF5 would return zeros.

A file lacks chunks that it counts if some of its parts are older than others: after a loss of power, or in a copy of a
growing file that was not read from first to last byte. A written chunk never moves or changes, so that an index entry
either leads to the right chunk, or to none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import h5py


def check_chunks(datasets: Mapping[str, h5py.Dataset], names: Iterable[str], rows: int, *, by_number: bool) -> None:
    """Check that datasets along `step` hold all of their first rows.

    Args:
        datasets: Datasets by name.
        names: Names of the datasets to check.
        rows: Number of rows that each must hold.
        by_number: Whether the number of chunks suffices, since no chunk can be missing while another one lies beyond
            the rows.

    Raises:
        ValueError: A dataset lacks a chunk.
    """
    for name in names:
        dataset = datasets[name]
        lengths = (rows, *dataset.shape[1:])
        wanted = math.prod(-(-length // chunk) for length, chunk in zip(lengths, dataset.chunks, strict=True))
        held = dataset.id.get_num_chunks() if by_number else _chunks_within(dataset, rows)
        if held < wanted:
            raise ValueError(f"{name} lacks rows that it counts, as after a loss of power, or in a copy made meanwhile")


def _chunks_within(dataset: h5py.Dataset, rows: int) -> int:
    """Return the number of chunks that hold any of a dataset's first rows."""
    found = 0

    def look(chunk: Any) -> None:
        nonlocal found
        found += chunk.chunk_offset[0] < rows

    dataset.id.chunk_iter(look)
    return found


def all_chunks_within(datasets: Iterable[h5py.Dataset], size: int) -> bool:
    """Say whether all chunks of some datasets lie within the first `size` bytes of their file."""
    found = True

    def look(chunk: Any) -> None:
        nonlocal found
        found = found and chunk.byte_offset + chunk.size <= size

    for dataset in datasets:
        if dataset.chunks is not None:
            dataset.id.chunk_iter(look)
    return found
