"""Counts of all coordinates: in two copies by turns, each under a checksum."""

import h5py
import numpy as np
import pytest
from rows import header, rows

from lsmooth.trace.density import (
    BINS_PER_DECADE,
    GRAD_DECADES,
    SMOOTHNESS_DECADES,
    Counts,
    DensityWriter,
    density_bytes,
    edges,
    read_density,
    read_edges,
)
from lsmooth.trace.writer import TraceWriter

SHAPE = (4, 16 * BINS_PER_DECADE, 16 * BINS_PER_DECADE)


def counts(number):
    return Counts(np.random.default_rng(number).integers(0, 1_000, SHAPE), 10 * number)


@pytest.fixture
def path(tmp_path):
    writer = TraceWriter(tmp_path / "run.h5", header(densities=True))
    writer.append(rows(header(densities=True), 0, 3))
    writer.abandon()
    return tmp_path / "run.h5"


def write(path, *several):
    with h5py.File(path, "r") as file, open(path, "r+b") as raw:
        writer = DensityWriter(file, raw.fileno())
        for some in several:
            writer.put(some)
        return writer.sequence


def read(path, last=None):
    with h5py.File(path, "r") as file:
        return read_density(file, last)


def test_edges_divide_each_decade():
    found = edges((-1, 1))
    assert len(found) == 2 * BINS_PER_DECADE + 1
    np.testing.assert_allclose(found[[0, BINS_PER_DECADE, -1]], [0.1, 1, 10])
    np.testing.assert_allclose(np.diff(np.log10(found)), 1 / BINS_PER_DECADE)


def test_nothing_is_counted_at_first(path):
    found = read(path)
    assert found.steps == 0
    assert found.counts.shape == SHAPE
    assert not found.counts.any()
    with h5py.File(path, "r") as file:
        kept = read_edges(file)
        assert file["density/counts"].id.get_storage_size() == density_bytes(4)
    np.testing.assert_array_equal(kept["grad"], edges(GRAD_DECADES))
    np.testing.assert_array_equal(kept["smoothness"], edges(SMOOTHNESS_DECADES))


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_the_newest_counts_are_read_and_the_file_does_not_grow(path, times):
    size = path.stat().st_size
    write(path, *(counts(number) for number in range(1, times + 1)))
    found = read(path)
    assert found.steps == 10 * times
    np.testing.assert_array_equal(found.counts, counts(times).counts)
    assert path.stat().st_size == size


def damage(path, copy):
    """Flip a bit of a copy, as a write that was cut off leaves it."""
    with h5py.File(path, "r") as file:
        dataset = file["density/counts"]
        place = dataset.id.get_offset() + copy * dataset[0].nbytes + 1_000
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def test_of_a_copy_that_was_cut_off_the_one_before_is_read(path):
    sequence = write(path, counts(1), counts(2))
    damage(path, sequence % 2)
    assert read(path).steps == 10
    # A run that ended well had the newer one.
    with pytest.raises(ValueError, match=f"the run ended with number {sequence}"):
        read(path, sequence)
    damage(path, (sequence - 1) % 2)
    with pytest.raises(ValueError, match="neither copy of the counts matches its checksum"):
        read(path)
