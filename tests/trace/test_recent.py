"""The newest rows: in slots with fixed places, each under a checksum of its own."""

import h5py
import numpy as np
import pytest
from rows import header, rows

from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.recent import read_closed, read_recent
from lsmooth.trace.writer import TraceWriter

COUNT = CHUNK_STEPS + 5


@pytest.fixture
def made():
    return header()


@pytest.fixture
def path(tmp_path, made):
    """A trace of one chunk and five rows in slots, as a killed run leaves it."""
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, COUNT))
    writer.abandon()
    return tmp_path / "run.h5"


def slots(path):
    """Return where the slots begin in the file, and the size of one."""
    with h5py.File(path, "r") as file:
        dataset = file["recent/rows"]
        return dataset.id.get_offset(), dataset.shape[1]


def read(path, made, whole=CHUNK_STEPS):
    with h5py.File(path, "r") as file:
        return read_recent(file, {field.name: file[field.name] for field in made.fields()}, whole)


def test_rows_come_out_in_order_as_they_went_in(path, made):
    found = read(path, made)
    np.testing.assert_array_equal(found["row"], np.arange(CHUNK_STEPS, COUNT))
    for name, values in rows(made, CHUNK_STEPS, COUNT).items():
        np.testing.assert_array_equal(found[name], values.astype(found[name].dtype), err_msg=name)


@pytest.mark.parametrize("row", [CHUNK_STEPS, CHUNK_STEPS + 2, COUNT - 1])
def test_a_damaged_row_is_refused_unless_it_is_the_last(path, made, row):
    """The last may have been on its way when the run was killed."""
    start, size = slots(path)
    raw = bytearray(path.read_bytes())
    raw[start + row % CHUNK_STEPS * size + size // 2] ^= 1
    path.write_bytes(raw)
    if row == COUNT - 1:
        np.testing.assert_array_equal(read(path, made)["row"], np.arange(CHUNK_STEPS, row))
    else:
        with pytest.raises(ValueError, match=f"row {row} does not match its checksum"):
            read(path, made)


def test_a_row_that_never_came_ends_the_trace(path, made):
    start, size = slots(path)
    raw = bytearray(path.read_bytes())
    missing = CHUNK_STEPS + 2
    place = start + missing % CHUNK_STEPS * size
    raw[place : place + size] = bytes(size)
    path.write_bytes(raw)
    np.testing.assert_array_equal(read(path, made)["row"], [CHUNK_STEPS, CHUNK_STEPS + 1])


def test_slots_of_rows_that_stand_in_chunks_already_are_passed_over(path, made):
    assert len(read(path, made, whole=COUNT)) == 0
    np.testing.assert_array_equal(read(path, made, whole=COUNT - 1)["row"], [COUNT - 1])


def test_a_trace_is_closed_once_it_says_so(path, made, tmp_path):
    with h5py.File(path, "r") as file:
        assert read_closed(file) is None
    writer = TraceWriter(tmp_path / "other.h5", made)
    writer.append(rows(made, 0, COUNT))
    writer.close(next_step=400)
    with h5py.File(tmp_path / "other.h5", "r") as file:
        closed = read_closed(file)
        place = file["recent/closed"].id.get_offset()
    assert (closed.rows, closed.next_step) == (COUNT, 400)
    raw = bytearray((tmp_path / "other.h5").read_bytes())
    raw[place] ^= 1
    (tmp_path / "other.h5").write_bytes(raw)
    with h5py.File(tmp_path / "other.h5", "r") as file, pytest.raises(ValueError, match="does not match its checksum"):
        read_closed(file)


def test_rows_that_wrap_around_the_slots_are_put_in_two_runs(tmp_path, made):
    writer = TraceWriter(tmp_path / "run.h5", made)
    for start in range(0, 2 * CHUNK_STEPS + 3, 7):
        stop = min(start + 7, 2 * CHUNK_STEPS + 3)
        writer.append(rows(made, start, stop))
    writer.abandon()
    np.testing.assert_array_equal(read(tmp_path / "run.h5", made, 2 * CHUNK_STEPS)["row"], 64 + np.arange(3))
