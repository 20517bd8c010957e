"""Which rows a file really holds: HDF5 makes up zeros for chunks that its index does not lead to.

A file lacks chunks that it counts when some of its parts are older than others: after a loss of power, or in a copy
that took the parts of a growing file in another order than from first to last. A chunk never moves and never changes
once it is written, so that an index either leads to the chunk of that place, or to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import h5py


def check_chunks(datasets: Mapping[str, h5py.Dataset], names: Iterable[str], rows: int, *, closed: bool) -> None:
    """Refuse datasets along `step` that do not hold all of their first rows.

    Args:
        datasets: Datasets by name, such as those of an open trace.
        names: Which of them.
        rows: How many rows each must hold.
        closed: Whether the run has closed the file, with that many rows.

    Raises:
        ValueError: One of them lacks a chunk.
    """
    for name in names:
        dataset = datasets[name]
        lengths = (rows, *dataset.shape[1:])
        wanted = math.prod(-(-length // chunk) for length, chunk in zip(lengths, dataset.chunks, strict=True))
        # In a closed file there are no chunks beyond its rows, so that their number tells all.
        held = dataset.id.get_num_chunks() if closed else _chunks_within(dataset, rows)
        if held < wanted:
            raise ValueError(f"{name} lacks rows that it counts, as after a loss of power, or in a copy made meanwhile")


def _chunks_within(dataset: h5py.Dataset, rows: int) -> int:
    """Return how many chunks hold some of a dataset's first rows."""
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
