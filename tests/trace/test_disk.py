"""When the disk is full, gone, read-only or slow: training goes on, one warning says so, what is there can be read."""

import ast
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import forked, without_rights
from rows import assert_rows, header, rows
from torch import nn

import lsmooth
from lsmooth import handover
from lsmooth.errors import TraceError
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


def train(path, steps, after=None, record=True):
    """Train `steps` steps, call `after` with each step's number, and return the final parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = lsmooth.Recorder(model, optimizer, path) if record else None
    for step in range(steps):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        if recorder is None:
            model(x).square().mean().backward()
        else:
            recorder.backward(lambda x=x: model(x).square().mean())
        optimizer.step()
        if after is not None:
            after(step, recorder)
    if recorder is not None:
        recorder.close()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.fixture(scope="module")
def unwatched():
    return train(None, 200, record=False)


@pytest.fixture
def flushing(monkeypatch):
    """Every step is flushed by itself."""
    monkeypatch.setattr(handover, "BLOCK_ROWS", 1)


@pytest.fixture
def small_files():
    """A function that keeps all files from growing beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_goes_on(path, unwatched, after, reason):
    """Train through a disaster; return the one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parameters = train(path, 200, after)
    for ours, theirs in zip(parameters, unwatched, strict=True):
        assert torch.equal(ours, theirs)
    told = [str(warning.message) for warning in caught]
    assert len(told) == 1, told
    assert f"cannot be written any more ({reason})" in told[0]
    assert "training goes on" in told[0]
    return told[0]


@pytest.mark.usefixtures("flushing")
def test_full_disk_ends_the_recording_and_not_the_training(tmp_path, unwatched, small_files):
    path = tmp_path / "run.h5"
    whole = tmp_path / "whole.h5"
    train(whole, 200)

    def fill(step, recorder):
        if step == 100:
            recorder.flush()
            small_files(path.stat().st_size + 1000)

    assert_goes_on(path, unwatched, fill, os.strerror(errno.EFBIG))
    with Trace(path) as trace, Trace(whole) as other:
        assert trace.state == "cut off"
        # All that came before the chunk for which there was no room.
        assert len(trace) >= 4 * CHUNK_STEPS - 1
        np.testing.assert_array_equal(trace.steps, np.arange(len(trace)))
        for name in ("grad_diff", "loss", "coordinate/grad_along"):
            np.testing.assert_array_equal(trace.read(name), other.read(name, slice(len(trace))))


@pytest.mark.parametrize("room", [0, 5_000, 30_000])
def test_full_disk_is_noticed_before_training_starts(tmp_path, small_files, room):
    path = tmp_path / "run.h5"
    small_files(room)
    with pytest.raises(TraceError, match=r"run.h5 cannot be written: File too large"):
        TraceWriter(path, header(parameters=[f"p{i}" for i in range(60)]))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_at_the_very_end_leaves_a_complete_trace(tmp_path, small_files):
    made, path = header(), tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 2 * CHUNK_STEPS))
    small_files(path.stat().st_size)
    writer.close()
    with Trace(path) as trace:
        assert trace.state == "complete"
        assert_rows(trace, made, 2 * CHUNK_STEPS)


@pytest.mark.parametrize("room", [100, 20_000])
def test_full_disk_while_a_trace_is_continued_leaves_the_old_one(tmp_path, small_files, room):
    made = header(parameters=[f"p{i}" for i in range(60)])
    path = tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 4 * CHUNK_STEPS))
    writer.close()
    writer = TraceWriter(path, made, "a")
    small_files(path.stat().st_size - room)
    with pytest.raises(TraceError, match="File too large"):
        writer.append(rows(made, 4 * CHUNK_STEPS, 5 * CHUNK_STEPS))
    assert_rows(Trace(path), made, 4 * CHUNK_STEPS)
    assert Trace(path).state == "complete"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("flushing")
@pytest.mark.parametrize("what", ["file", "folder", "moved"])
def test_vanished_file_ends_the_recording_and_not_the_training(tmp_path, unwatched, what):
    folder = tmp_path / "runs"
    folder.mkdir()
    path = folder / "run.h5"

    def vanish(step, recorder):
        if step == 60:
            recorder.flush()
            if what == "file":
                path.unlink()
            elif what == "folder":
                shutil.rmtree(folder)
            else:
                folder.rename(tmp_path / "moved")

    told = assert_goes_on(path, unwatched, vanish, "it was moved or deleted")
    assert "run.h5" in told
    assert not path.exists()
    if what == "moved":
        with Trace(tmp_path / "moved" / "run.h5") as trace:
            assert len(trace) == 61
            assert trace.state == "cut off"


@pytest.mark.usefixtures("flushing")
def test_disk_that_turns_read_only_ends_the_recording_and_not_the_training(tmp_path, unwatched, monkeypatch):
    path = tmp_path / "run.h5"

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def remount(step, recorder):
        if step == 60:
            recorder.flush()
            monkeypatch.setattr(os, "pwrite", refuse)

    assert_goes_on(path, unwatched, remount, "Read-only file system")
    monkeypatch.undo()
    with Trace(path) as trace:
        assert len(trace) == 61


def test_folder_without_permission_is_refused_before_training_starts(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()

    def work():
        without_rights(tmp_path)
        try:
            TraceWriter(folder / "run.h5", header())
        except TraceError as error:
            return str(error)
        return "written"

    answer = forked(work)
    assert answer == f"{folder / 'run.h5'} cannot be written: Permission denied; choose a folder that you may write to."
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("flushing")
def test_slow_disk_holds_up_no_step(tmp_path, monkeypatch):
    """The disk takes nothing until the last step is over: a step that waited for it would wait for ever."""
    over = threading.Event()
    append = TraceWriter.append

    def slow(self, *arguments):
        assert over.wait(60)
        append(self, *arguments)

    monkeypatch.setattr(TraceWriter, "append", slow)
    path = tmp_path / "run.h5"
    train(path, 80, lambda step, recorder: over.set() if step == 79 else None)
    with Trace(path) as trace:
        np.testing.assert_array_equal(trace.steps, np.arange(80))
        assert trace.state == "complete"


# --- errors that come when HDF5 is at work, past all room that was reserved ---


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_disk_that_fails_while_hdf5_writes_neither_ends_nor_crashes_the_process(tmp_path, share):
    """As on a file system that promises room and does not have it; HDF5's state is then no longer whole."""
    path = tmp_path / "run.h5"
    code = (
        "import os, resource, signal, sys, warnings\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from rows import header, rows\n"
        "from lsmooth.trace import writer\n"
        "made = header(parameters=[f'p{i}' for i in range(40)])\n"
        "opened = writer.TraceWriter(sys.argv[2], made)\n"
        "background = writer.BackgroundWriter(opened)\n"
        "background.put(lambda: (rows(made, 0, 63),))\n"
        "background.wait()\n"
        # Room is promised, and the file's end is not where it is.
        "writer._reserve = lambda descriptor, size: None\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "size = os.stat(sys.argv[2]).st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(20_000 * float(sys.argv[3])),) * 2)\n"
        "background.put(lambda: (rows(made, 63, 64),))\n"
        "background.put(lambda: (rows(made, 64, 65),))\n"
        "background.wait()\n"
        "print(background.problems())\n"
        "background.close()\n"
        "print(background.problems())\n"
    )
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, tests, str(path), str(share)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, last = map(ast.literal_eval, done.stdout.splitlines())
    assert first == [
        f"{path} cannot be written any more (File too large): measurements from here on are not recorded, training "
        "goes on, and what was written stays readable."
    ]
    assert last == []
    made = header(parameters=[f"p{i}" for i in range(40)])
    with Trace(path) as trace:
        assert trace.state == "cut off"
        assert_rows(trace, made, 63)


@pytest.mark.usefixtures("flushing")
@pytest.mark.parametrize("end", ["comes back", "stays away"])
def test_disk_that_takes_nothing_for_long_drops_rows_and_says_which(tmp_path, unwatched, monkeypatch, end):
    """Up to a bound, rows wait in memory; from there on they are dropped, until the disk takes some again."""
    whole, path = tmp_path / "whole.h5", tmp_path / "run.h5"
    train(whole, 200)
    takes = threading.Event()
    takes.set()
    append = TraceWriter.append

    def stalled(self, *arguments):
        assert takes.wait(60)
        append(self, *arguments)

    def after(step, recorder):
        if step == 19:
            recorder.flush()
            takes.clear()
        elif step == (99 if end == "comes back" else 199):
            takes.set()
            if end == "comes back":
                recorder.flush()

    monkeypatch.setattr(TraceWriter, "append", stalled)
    monkeypatch.setattr("lsmooth.trace.writer.QUEUE_BYTES", 50_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parameters = train(path, 200, after)
    for ours, theirs in zip(parameters, unwatched, strict=True):
        assert torch.equal(ours, theirs)

    with Trace(path) as trace, Trace(whole) as other:
        assert trace.state == "complete"
        missing = np.setdiff1d(np.arange(200), trace.steps)
        first, last = missing[0], 99 if end == "comes back" else 199
        # What had been handed over before is there, and so is what came after.
        assert 20 < first < 60
        np.testing.assert_array_equal(missing, np.arange(first, last + 1))
        for name in ("grad_diff", "loss", "coordinate/grad_along"):
            np.testing.assert_array_equal(trace.read(name), other.read(name)[trace.steps])
    assert [str(warning.message) for warning in caught] == [
        f"{path}: the disk has not taken the 0 MB of measurements that wait for it, and those from step {first} on are "
        "dropped until it does; training goes on.",
        f"{path} lacks {len(missing)} measured steps, {first} to {last}, which came while the disk took nothing.",
    ]


def test_folder_without_permission_is_refused_when_a_trace_is_continued(tmp_path):
    """And not hours later, when the first rows have come."""
    made, path = header(), tmp_path / "runs" / "run.h5"
    path.parent.mkdir()
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 5))
    writer.close()
    path.chmod(0o666)

    def work():
        without_rights(tmp_path)
        try:
            TraceWriter(path, made, "a")
        except TraceError as error:
            return str(error)
        return "written"

    assert forked(work) == f"{path} cannot be written: Permission denied; choose a folder that you may write to."
    assert_rows(Trace(path), made, 5)
