"""Densities: histograms of all coordinates over gradient and local Lipschitz constant, by parameter tensor.

The counts of a run have a fixed size and place in the file. They are overwritten again and again, in two copies by
turns, each under a checksum. So one copy is complete whenever the run is killed. `docs/trace-format.md` describes them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from lsmooth.trace.attributes import put_text
from lsmooth.trace.disk import write_at
from lsmooth.trace.layout import DENSITY_GROUP
from lsmooth.trace.recent import create_dimension, create_in_place

BINS_PER_DECADE = 6
# First and last power of ten of the bins: of gradients of single coordinates, and of local Lipschitz constants.
GRAD_DECADES = (-12, 4)
SMOOTHNESS_DECADES = (-8, 8)
COPIES = 2


def edges(decades: tuple[int, int]) -> NDArray[np.float64]:
    """Return the edges of bins, `BINS_PER_DECADE` of equal width on the logarithm in each decade."""
    low, high = decades
    return np.logspace(low, high, (high - low) * BINS_PER_DECADE + 1)


@dataclass(frozen=True)
class Density:
    """Histogram of the coordinates of one parameter tensor over gradient and local Lipschitz constant, over all steps.

    Each coordinate j that moved at a well measured step is one point: the maximum over gamma of
    |Delta_j(gamma)| / |gamma d_j|, against min(|grad_j f(x_t)|, |grad_j f(x_t + gamma d)|) at that gamma (Crawshaw et
    al. 2022, Section 5.2 and Figure 3).

    Attributes:
        parameter: Name of the tensor.
        grad_edges: Edges of the gradients' bins, log-spaced, float64 (g + 1,).
        smoothness_edges: Edges of the estimates' bins, log-spaced, float64 (s + 1,).
        counts: Number of points in each bin, int64 (g, s).
        steps: Number of well measured steps that were counted.
        left_out: Number of points outside of all bins: the coordinate did not move, a gradient at an end or the
            estimate is 0, or a value lies beyond the edges.
    """

    parameter: str
    grad_edges: NDArray[np.float64]
    smoothness_edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    steps: int
    left_out: int


@dataclass(frozen=True)
class Counts:
    """Counts of all tensors, int64 (p, g, s), and the number of well measured steps that they cover."""

    counts: NDArray[np.int64]
    steps: int


def create_density(file: h5py.File, parameters: h5py.Dataset) -> None:
    """Lay out the group `density` of a new file, with nothing counted.

    Args:
        file: The new file.
        parameters: The dimension scale of its parameter tensors.
    """
    folder = file.create_group(DENSITY_GROUP, track_order=True)
    put_text(
        folder,
        "long_name",
        "coordinates of each parameter tensor at well measured steps, counted by gradient and local Lipschitz "
        "constant; the copy to read is the one with the larger sequence number whose checksum fits",
    )
    bins: list[h5py.Dataset] = []
    for name, decades, meaning in (
        ("grad", GRAD_DECADES, "min(|grad_j f(x_t)|, |grad_j f(x_t + gamma d)|)"),
        ("smoothness", SMOOTHNESS_DECADES, "max over gamma of |Delta_j(gamma)| / |gamma d_j|"),
    ):
        values = edges(decades)
        edge = folder.create_dataset(f"{name}_edge", data=values)
        edge.make_scale(f"{name}_edge")
        put_text(edge, "long_name", f"edges of the bins of {meaning}")
        bins.append(create_dimension(folder, f"{name}_bin", len(values) - 1))
    copy = create_dimension(folder, "copy", COPIES)
    shape = (COPIES, len(parameters), len(bins[0]), len(bins[1]))
    counts = create_in_place(folder, "counts", shape, "<i8", "coordinates in each bin")
    note = create_in_place(
        folder, "note", (COPIES, 3), "<i8", "steps counted, sequence number, CRC-32 of these two and the counts"
    )
    for axis, scale in enumerate((copy, parameters, *bins)):
        counts.dims[axis].attach_scale(scale)
    note.dims[0].attach_scale(copy)
    note.dims[1].attach_scale(create_dimension(folder, "note_item", 3))
    note[:] = [[0, sequence, _checksum(0, sequence, np.zeros(shape[1:], "<i8"))] for sequence in range(COPIES)]


def density_bytes(parameters: int) -> int:
    """Return the bytes that the counts of `parameters` parameter tensors take in a file."""
    return COPIES * parameters * (len(edges(GRAD_DECADES)) - 1) * (len(edges(SMOOTHNESS_DECADES)) - 1) * 8


class DensityWriter:
    """Writes the counts of a run to their place.

    Args:
        file: The open trace, with the group made by `create_density`.
        descriptor: The same file, open for writing.

    Attributes:
        sequence: Sequence number of the newest counts.
    """

    def __init__(self, file: h5py.File, descriptor: int) -> None:
        self._descriptor = descriptor
        counts, note = file[f"{DENSITY_GROUP}/counts"], file[f"{DENSITY_GROUP}/note"]
        self._shape = counts.shape[1:]
        self._counts_at = counts.id.get_offset()
        self._note_at = note.id.get_offset()
        self.sequence = int(note[:, 1].max())

    def put(self, density: Counts) -> None:
        """Write counts to the older copy; until they are complete, readers take the other copy."""
        counts = np.ascontiguousarray(density.counts, "<i8").reshape(self._shape)
        self.sequence += 1
        copy = self.sequence % COPIES
        note = np.array([density.steps, self.sequence, _checksum(density.steps, self.sequence, counts)], "<i8")
        write_at(self._descriptor, counts.data.cast("B"), self._counts_at + copy * counts.nbytes)
        write_at(self._descriptor, note.data.cast("B"), self._note_at + copy * note.nbytes)


def read_density(file: h5py.File, last: int | None) -> Counts:
    """Return the newest complete counts of a trace.

    Args:
        file: The open trace.
        last: Sequence number of the counts that the run ended with; None if unknown.

    Raises:
        ValueError: Neither copy matches its checksum, or the last counts are not among them.
    """
    counts, note = file[f"{DENSITY_GROUP}/counts"], file[f"{DENSITY_GROUP}/note"]
    note.id.refresh()
    counts.id.refresh()
    notes = note[:]
    for copy in sorted(range(COPIES), key=lambda copy: -notes[copy, 1]):
        steps, sequence, checksum = (int(value) for value in notes[copy])
        found = np.asarray(counts[copy], "<i8")
        if _checksum(steps, sequence, found) == checksum:
            if last is not None and sequence != last:
                raise ValueError(f"its newest counts are number {sequence}, and the run ended with number {last}")
            return Counts(found, steps)
    raise ValueError("neither copy of the counts matches its checksum")


def read_edges(file: h5py.File) -> Mapping[str, NDArray[np.float64]]:
    """Return the edges of a trace's bins, by "grad" and "smoothness"."""
    return {name: file[f"{DENSITY_GROUP}/{name}_edge"][:] for name in ("grad", "smoothness")}


def _checksum(steps: int, sequence: int, counts: NDArray[np.int64]) -> int:
    head = zlib.crc32(np.array([steps, sequence], "<i8").tobytes())
    return zlib.crc32(np.ascontiguousarray(counts).data.cast("B"), head)
