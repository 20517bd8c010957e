"""The trace's writer: rows that arrive in any blocks, one writer a file, and what continues what."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from rows import PARAMETERS, assert_rows, header, rows

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def written(path, count, **others):
    made = header(**others)
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, count))
    writer.close()
    return made


@pytest.mark.parametrize("block", [1, 3, CHUNK_STEPS - 1, CHUNK_STEPS, CHUNK_STEPS + 1, 5 * CHUNK_STEPS])
def test_every_row_can_be_read_from_the_moment_it_is_appended(path, block):
    made = header()
    writer = TraceWriter(path, made)
    trace = Trace(path)
    assert len(trace) == 0
    count = 2 * CHUNK_STEPS + 5
    for start in range(0, count, block):
        stop = min(start + block, count)
        writer.append(rows(made, start, stop))
        assert trace.refresh() == stop == writer.rows
        assert_rows(trace, made, stop)
        assert trace.state == "being written"
    with Trace(path) as opened:
        assert_rows(opened, made, count)
    writer.close()
    with Trace(path) as opened:
        assert_rows(opened, made, count)
        assert opened.state == "complete"
    trace.refresh()
    assert_rows(trace, made, count)


def test_rows_are_read_across_the_seam_between_chunks_and_slots(path):
    made = header()
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, CHUNK_STEPS + 7))
    trace = Trace(path)
    everything = rows(made, 0, CHUNK_STEPS + 7)["grad_diff"].astype("f4")
    for part in (slice(3, 9), slice(CHUNK_STEPS - 2, CHUNK_STEPS + 2), slice(CHUNK_STEPS + 1, None), slice(-3, None)):
        np.testing.assert_array_equal(trace.read("grad_diff", part), everything[part])
    assert trace.read("grad_diff", slice(5, 5)).shape == (0, 2, 4)
    writer.close()


def test_totals_are_the_joined_norms_of_all_tensors(path):
    made = written(path, 50)
    trace = Trace(path)
    for name in ("grad_norm", "step_norm", "grad_diff"):
        expected = np.sqrt(np.square(trace.read(name).astype(np.float64)).sum(axis=-1))
        np.testing.assert_allclose(trace.read(f"total_{name}"), expected, rtol=1e-14)
    by_hand = trace.cloud(dict.fromkeys(made.parameters, "all"))
    np.testing.assert_array_equal(trace.cloud("global").smoothness, by_hand.smoothness)
    np.testing.assert_array_equal(trace.cloud("global").grad_norm, by_hand.grad_norm)


def test_slow_runs_take_no_more_room_than_fast_ones(tmp_path):
    made = header(parameters=[f"p{i}" for i in range(40)])
    sizes = {}
    for block in (1, 2 * CHUNK_STEPS):
        path = tmp_path / f"{block}.h5"
        writer = TraceWriter(path, made)
        for start in range(0, 8 * CHUNK_STEPS, block):
            writer.append(rows(made, start, start + block))
        writer.close()
        sizes[block] = path.stat().st_size
    assert sizes[1] < 1.05 * sizes[2 * CHUNK_STEPS]


GROWS = """
import sys
from pathlib import Path

from rows import header, rows
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.writer import TraceWriter


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


made = header([f"layer.{i}" for i in range(100)])
writer = TraceWriter(sys.argv[1], made)
block = rows(made, 0, CHUNK_STEPS)
for count in range(300):
    if count == 100:
        before, size = resident(), Path(sys.argv[1]).stat().st_size
    writer.append(block | {"step": block["step"] + 10 * CHUNK_STEPS * count})
print(resident() - before, Path(sys.argv[1]).stat().st_size - size)
writer.close(0)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident set from /proc")
def test_what_has_been_written_is_not_kept_in_memory(path):
    done = subprocess.run(
        [sys.executable, "-c", GROWS, path],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown, written = map(int, done.stdout.split())
    assert written > 10e6
    assert grown < written / 4


@pytest.mark.parametrize("promises", [True, False])
def test_the_file_is_no_larger_than_it_says_while_it_grows(path, promises, monkeypatch):
    """Also where the file system promises no space."""
    if not promises:

        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    made = header()
    writer = TraceWriter(path, made)
    for start in range(0, 6 * CHUNK_STEPS, CHUNK_STEPS):
        writer.append(rows(made, start, start + CHUNK_STEPS))
        # Room that is reserved before writing is given back; HDF5 has a file end at the address in its superblock.
        assert int.from_bytes(path.read_bytes()[28:36], "little") == path.stat().st_size
    writer.close()
    assert int.from_bytes(path.read_bytes()[28:36], "little") == path.stat().st_size
    assert_rows(Trace(path), made, 6 * CHUNK_STEPS)


# --- other tools ---


@pytest.mark.parametrize("moment", ["new", "growing", "abandoned", "closed"])
def test_plain_hdf5_opens_it_at_any_moment(path, moment):
    made = header()
    writer = TraceWriter(path, made)
    if moment != "new":
        writer.append(rows(made, 0, CHUNK_STEPS + 3))
    if moment == "abandoned":
        writer.abandon()
    elif moment == "closed":
        writer.close()
    code = f"import h5py; print(len(h5py.File({str(path)!r}, 'r')['grad_norm']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        int(done.stdout)
        == {"new": 0, "growing": CHUNK_STEPS, "abandoned": CHUNK_STEPS, "closed": CHUNK_STEPS + 3}[moment]
    )
    writer.close()


# --- one writer ---


@pytest.mark.parametrize("mode", ["w", "a"])
def test_second_writer_in_the_same_process_is_refused(path, mode):
    made = header()
    writer = TraceWriter(path, made)
    with pytest.raises(TraceError, match="is being written by another recorder"):
        TraceWriter(path, made, mode)
    writer.append(rows(made, 0, 5))
    writer.close()
    assert_rows(Trace(path), made, 5)
    TraceWriter(path, made, mode).close()


def test_second_process_is_refused_in_one_sentence(path):
    made = header()
    writer = TraceWriter(path, made)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from rows import header; "
        "from lsmooth.trace.writer import TraceWriter\n"
        "try: TraceWriter(sys.argv[2], header(), 'a')\n"
        "except Exception as error: print(error)"
    )
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", code, tests, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == f"{path} is being written by another recorder; close it or wait for it to end, or choose another name.\n"
    )
    writer.append(rows(made, 0, 3))
    writer.close()
    assert_rows(Trace(path), made, 3)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_reading_does_not_stand_in_a_writers_way(path):
    made = written(path, 3)
    with Trace(path) as trace:
        assert trace.state == "complete"
        writer = TraceWriter(path, made, "a")
        assert trace.state == "being written"
        writer.close()


def test_a_fork_neither_keeps_the_lock_nor_touches_the_file(path):
    made = header()
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, CHUNK_STEPS + 2))
    ends, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        # As a forked data loader's worker may outlive the recorder, and end in whatever way.
        os.read(ends, 1)
        writer.close()
        os._exit(0)
    os.close(ends)
    writer.append(rows(made, CHUNK_STEPS + 2, 2 * CHUNK_STEPS + 1))
    writer.close()
    assert Trace(path).state == "complete"
    TraceWriter(path, made, "a").close()
    os.close(go)
    os.waitpid(child, 0)
    assert_rows(Trace(path), made, 2 * CHUNK_STEPS + 1)
    assert Trace(path).state == "complete"


@pytest.mark.parametrize("mode", ["x", "w", "a"])
def test_first_to_name_a_file_keeps_it(path, mode, monkeypatch):
    """Two processes find no file at the path; while the second writes its own, the first puts one there."""
    made = header()
    real = h5py.File

    def overtaken(*arguments, **others):
        if not path.exists():
            monkeypatch.setattr("lsmooth.trace.writer.h5py.File", real)
            first.append(TraceWriter(path, made))
        return real(*arguments, **others)

    first = []
    monkeypatch.setattr("lsmooth.trace.writer.h5py.File", overtaken)
    with pytest.raises(TraceError, match="exists already"):
        TraceWriter(path, made, mode)
    first[0].append(rows(made, 0, 3))
    first[0].close()
    assert_rows(Trace(path), made, 3)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_file_that_hdf5_takes_for_one_it_has_open_is_not_used(path, monkeypatch):
    """The number of a deleted file, which HDF5 was made to leave open, goes to the next file."""
    made = header()
    real, refused = h5py.File, []

    def first_refused(name, *arguments, **others):
        if len(refused) < 2:
            refused.append(Path(name))
            raise OSError("Unable to synchronously create file (unable to truncate a file which is already open)")
        assert all(other.exists() for other in refused)
        return real(name, *arguments, **others)

    monkeypatch.setattr("lsmooth.trace.writer.h5py.File", first_refused)
    writer = TraceWriter(path, made)
    monkeypatch.undo()
    writer.append(rows(made, 0, 3))
    writer.close()
    assert_rows(Trace(path), made, 3)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


# --- modes ---


def test_existing_file_is_kept_or_replaced_as_asked(path):
    made = written(path, 3)
    with pytest.raises(TraceError, match=r"run.h5 exists already; choose another name, or mode='w'"):
        TraceWriter(path, made)
    assert_rows(Trace(path), made, 3)
    TraceWriter(path, made, "w").close()
    assert len(Trace(path)) == 0


def test_unknown_mode_and_missing_folder(path):
    with pytest.raises(InvalidArgumentError, match="mode='r' is none of"):
        TraceWriter(path, header(), "r")
    with pytest.raises(TraceError, match="There is no folder"):
        TraceWriter(path.parent / "nowhere" / "run.h5", header())
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("end", ["close", "abandon"])
@pytest.mark.parametrize("count", [0, 5, CHUNK_STEPS, 2 * CHUNK_STEPS + 9])
def test_continued_trace_is_the_one_that_was_not_interrupted(path, count, end):
    made = header()
    writer = TraceWriter(path, made)
    if count:
        writer.append(rows(made, 0, count))
    getattr(writer, end)()
    before = path.read_bytes()
    writer = TraceWriter(path, made, "a")
    assert writer.next_step == (10 * (count - 1) + 1 if count else 0)
    assert path.read_bytes() == before
    writer.append(rows(made, count, count + 50))
    writer.close(next_step=777)
    trace = Trace(path)
    assert_rows(trace, made, count + 50)
    assert trace.next_step == 777


def test_continuing_drops_what_the_checkpoint_does_not_know(path):
    made = written(path, 70)
    writer = TraceWriter(path, made, "a")
    writer.go_on_from(405, rows=41)
    writer.append(rows(made, 41, 80))
    writer.close()
    assert_rows(Trace(path), made, 80)


def test_continuing_refuses_a_checkpoint_of_another_run_or_too_late(path):
    made = written(path, 20)
    writer = TraceWriter(path, made, "a")
    with pytest.raises(TraceError, match="holds 20 measured steps before step 500, and the checkpoint knows of 50"):
        writer.go_on_from(500, rows=50)
    writer.append(rows(made, 20, 21))
    with pytest.raises(TraceError, match="load the checkpoint's state before the first step"):
        writer.go_on_from(100, rows=10)
    writer.close()
    path.unlink()
    writer = TraceWriter(path, made, "a")
    with pytest.raises(TraceError, match=r"There was no .* to continue"):
        writer.go_on_from(500, rows=50)
    writer.close()


@pytest.mark.parametrize(
    ("others", "difference"),
    [
        ({"parameters": PARAMETERS[:3]}, "it has 4 parameter tensors, this run has 3"),
        ({"parameters": (*PARAMETERS[:3], "tail.weight")}, "it has head.weight where this run has tail.weight"),
        ({"parameter_sizes": (10, 11, 12, 99)}, "head.weight has 13 elements there and 99 here"),
        ({"gammas": (0.25, 0.75)}, "its gammas are 0.25, 0.5, this run's are 0.25, 0.75"),
        ({"gammas": (0.5,)}, "its gammas are 0.25, 0.5, this run's are 0.5"),
        ({"endpoint": False}, "only one of the two has coordinate/grad_next, loss_next"),
        ({"coordinates": 2}, "it follows other coordinates"),
        ({"coordinates": 0}, "only one of the two has coordinate/displacement"),
        ({"groups": 1}, "its optimizer has another number of parameter groups"),
        ({"real": "float64"}, "its norms are not float64"),
    ],
)
def test_continuing_refuses_another_run_and_names_the_difference(path, others, difference):
    written(path, 5)
    before = path.read_bytes()
    with pytest.raises(TraceError, match="cannot be continued by this run") as caught:
        TraceWriter(path, header(**others), "a")
    assert difference in str(caught.value)
    assert path.read_bytes() == before
    assert Trace(path).state == "complete"


def test_working_directory_may_change(path, monkeypatch):
    made = header()
    monkeypatch.chdir(path.parent)
    writer = TraceWriter("run.h5", made)
    monkeypatch.chdir("/")
    writer.append(rows(made, 0, 3))
    writer.close()
    assert_rows(Trace(path), made, 3)


def test_link_to_a_file_elsewhere_stays_a_link(path, tmp_path):
    (tmp_path / "disk").mkdir()
    path.symlink_to(tmp_path / "disk" / "run.h5")
    made = header()
    TraceWriter(path, made).close()
    TraceWriter(path, made, "w").close()
    assert path.is_symlink()
    assert len(Trace(tmp_path / "disk" / "run.h5")) == 0
