"""A file that grows: rows that arrive in any blocks, room that is given back, and other tools that look on."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rows import assert_rows, header, rows

from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


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
