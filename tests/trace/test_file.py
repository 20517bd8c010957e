"""A trace file as it stands: datasets by rows and columns, and how far the run has come."""

import os
import time

import numpy as np
import pytest
from rows import header, rows

from lsmooth.errors import TraceError
from lsmooth.trace import chunks, opening
from lsmooth.trace.file import TraceFile
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.writer import TraceWriter

COUNT = CHUNK_STEPS + 9


@pytest.fixture(params=["closed", "cut off"])
def file(request, tmp_path):
    made = header()
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, COUNT))
    if request.param == "closed":
        writer.close(next_step=500)
    else:
        writer.abandon()
    with TraceFile(tmp_path / "run.h5") as file:
        yield file


@pytest.mark.parametrize(
    "part",
    [
        slice(None),
        slice(0, 5),
        slice(CHUNK_STEPS - 2, CHUNK_STEPS + 3),
        slice(CHUNK_STEPS + 1, None),
        slice(-3, None),
        slice(5, 5),
        slice(COUNT, COUNT + 9),
    ],
    ids=str,
)
@pytest.mark.parametrize("columns", [None, slice(1, 3), slice(-1, None)], ids=str)
def test_parts_of_a_dataset_are_parts_of_the_whole(file, part, columns):
    whole = rows(header(), 0, COUNT)["grad_diff"].astype("f4")[part]
    np.testing.assert_array_equal(
        file.read("grad_diff", part, columns), whole if columns is None else whole[..., columns]
    )


def test_a_file_says_how_its_run_ended_and_goes_on(file):
    assert len(file) == COUNT
    if file.state == "complete":
        assert file.next_step == 500
    else:
        assert file.state == "cut off"
        assert file.next_step == 10 * (COUNT - 1) + 1


def test_what_was_read_before_stays_valid(file):
    first = file.read("loss")
    file.close()
    np.testing.assert_array_equal(first, rows(header(), 0, COUNT)["loss"])
    assert file.refresh() == COUNT
    np.testing.assert_array_equal(file.read("loss"), first)


def test_what_it_lacks_is_named(file):
    assert not file.has("grad_noise")
    with pytest.raises(TraceError, match="has no grad_noise; it holds"):
        file.read("grad_noise")
    assert not file.has_densities
    with pytest.raises(TraceError, match="record with densities=True"):
        file.density_counts()


def test_a_growing_file_is_followed(tmp_path):
    made = header()
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, 3))
    with TraceFile(tmp_path / "run.h5") as file:
        assert (len(file), file.state) == (3, "being written")
        writer.append(rows(made, 3, COUNT))
        assert len(file) == 3
        assert file.refresh() == COUNT
        np.testing.assert_array_equal(file.steps, 10 * np.arange(COUNT))
        writer.close()
        # It has ended, and there is more to know of it than was read.
        assert file.state == "being written"
        file.refresh()
        assert file.state == "complete"


def test_a_look_at_a_growing_file_costs_what_is_new(tmp_path, monkeypatch):
    """Chunks that were counted are not counted again, and a file that has not grown is not opened again."""
    made, path = header(), tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 3 * CHUNK_STEPS))
    with TraceFile(path) as file:
        calls = []
        for module, name in ((chunks, "_chunks_within"), (opening, "open_file")):
            real = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
        for stop in range(3 * CHUNK_STEPS + 1, 5 * CHUNK_STEPS, 7):
            writer.append(rows(made, stop - (1 if stop == 3 * CHUNK_STEPS + 1 else 7), stop))
            assert file.refresh() == stop
        assert set(calls) == {"open_file"}
        # Written to twice within what a file's time of writing tells apart.
        now = time.time_ns()
        os.utime(path, ns=(now, now))
        file.refresh()
        writer.append(rows(made, stop, stop + 1))
        os.utime(path, ns=(now, now))
        stop += 1
        assert file.refresh() == stop
        # Longer ago than that.
        old = time.time_ns() - 10**9
        os.utime(path, ns=(old, old))
        file.refresh()
        calls.clear()
        assert file.refresh() == stop
        np.testing.assert_array_equal(file.read("step"), 10 * np.arange(stop))
        assert calls == []
        file.close()
        assert file.refresh() == stop
        assert calls == ["open_file"]
        # A row that is put into its place changes neither size nor first bytes of the file.
        writer.append(rows(made, stop, stop + 1))
        assert file.refresh() == stop + 1
        writer.close()
        calls.clear()
        assert file.refresh() == stop + 1
        assert file.state == "complete"
        # And another file in its place is looked through.
        TraceWriter(path, made, "w").append(rows(made, 0, CHUNK_STEPS))
        calls.clear()
        assert file.refresh() == CHUNK_STEPS


def test_a_growing_file_that_lacks_chunks_is_refused_at_the_first_look(tmp_path, monkeypatch):
    made, path = header(), tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 3 * CHUNK_STEPS))
    monkeypatch.setattr(chunks, "_chunks_within", lambda dataset, count: 0)
    with pytest.raises(TraceError, match="lacks rows that it counts"):
        TraceFile(path)
    writer.close()


def test_a_file_that_is_gone_is_said_to_be(tmp_path):
    with pytest.raises(TraceError, match=r"gone\.h5"):
        TraceFile(tmp_path / "gone.h5")
