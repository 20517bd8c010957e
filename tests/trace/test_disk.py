"""When the disk is full, gone or read-only: training goes on, one warning says so, what is there can be read."""

import ast
import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import read_only
from loops import not_put_back
from rows import assert_rows, header, rows
from small_run import train
from torch import nn

import lsmooth
import lsmooth.recorder  # before a test gives up the rights to look for it
from lsmooth.errors import TraceWarning
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


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
    assert caught[0].category is TraceWarning
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
    with pytest.raises(OSError, match="File too large"):
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


# --- errors that come when HDF5 is at work, past all room that was reserved ---


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_disk_that_fails_while_hdf5_writes_neither_ends_nor_crashes_the_process(tmp_path, share):
    """As on a file system that promises room and does not have it; HDF5's state is then no longer whole."""
    path = tmp_path / "run.h5"
    code = (
        "import os, resource, signal, sys, warnings\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from rows import header, rows\n"
        "from lsmooth.trace import background, disk, writer\n"
        "made = header(parameters=[f'p{i}' for i in range(40)])\n"
        "opened = writer.TraceWriter(sys.argv[2], made)\n"
        "thread = background.BackgroundWriter(opened)\n"
        "thread.put(lambda: (rows(made, 0, 63),))\n"
        "thread.wait()\n"
        # Room is promised, and the file's end is not where it is.
        "disk.reserve = lambda descriptor, size: None\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "size = os.stat(sys.argv[2]).st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(20_000 * float(sys.argv[3])),) * 2)\n"
        "thread.put(lambda: (rows(made, 63, 64),))\n"
        "thread.put(lambda: (rows(made, 64, 65),))\n"
        "thread.wait()\n"
        "print(thread.problems())\n"
        "thread.close()\n"
        "print(thread.problems())\n"
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


# --- a path that cannot be written from the start ---


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The trace of the first fifty steps, and its recorder's state then."""
    path = tmp_path_factory.mktemp("earlier") / "run.h5"
    states = []
    train(path, 50, lambda step, recorder: states.append(recorder.state_dict()) if step == 49 else None)
    return path, states[0]


@pytest.mark.parametrize(
    ("obstacle", "mode", "reason"),
    [
        ("folder", "x", "Permission denied"),
        ("folder", "w", "Permission denied"),
        ("folder", "a", "Permission denied"),
        ("unseen folder", "x", "Permission denied"),
        ("unseen folder", "a", "Permission denied"),
        ("file", "w", "Permission denied"),
        ("file", "a", "Permission denied"),
        ("room 0", "x", "File too large"),
        ("room 5000", "x", "File too large"),
        ("room 30000", "w", "File too large"),
    ],
)
def test_training_goes_on_where_nothing_can_be_written(
    obstacle, mode, reason, tmp_path, earlier, unwatched, small_files
):
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o777)
    path = folder / "run.h5"
    if mode != "x":
        shutil.copy(earlier[0], path)
    before = bytes_in(folder)
    calls, told = [], []
    with contextlib.ExitStack() as stack:
        if obstacle == "file":
            path.chmod(0o444)
            folder.chmod(0o777)
            stack.enter_context(read_only(folder, 0o777))
        elif obstacle.endswith("folder"):
            stack.enter_context(read_only(folder, 0 if obstacle.startswith("unseen") else 0o555))
        else:
            small_files(int(obstacle.split()[1]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")

            def after(step, recorder):
                if step == 0:
                    # Before the first measured step, or anything else that may take long.
                    told.extend(str(warning.message) for warning in caught)
                    calls.append(recorder)
                assert recorder.latest is None
                assert recorder.step == step + 1 + (50 if mode == "a" and not obstacle.startswith("unseen") else 0)

            parameters = train(path, 200, after, mode=mode)
    for ours, theirs in zip(parameters, unwatched, strict=True):
        assert torch.equal(ours, theirs)
    failure = f"{path} cannot be written ({reason}); choose another path, or see to the permissions and the room there."
    assert told == [f"Nothing of this run is recorded, and training goes on: {failure}"]
    assert [str(warning.message) for warning in caught] == told
    assert caught[0].category is TraceWarning
    assert calls[0].failure == failure
    assert bytes_in(folder) == before
    if mode != "x":
        with Trace(path) as trace:
            assert len(trace) == 50


def net():
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


COUNTS = not_put_back(by_step=[], asked=0)


def evaluations(model, optimizer, recorder, steps):
    """Train, and return how often the loss was evaluated in each step."""
    counts = COUNTS.by_step = []
    for step in steps:
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        counts.append(0)

        def closure(x=x):
            COUNTS.by_step[-1] += 1
            return model(x).square().mean()

        optimizer.zero_grad()
        recorder.backward(closure)
        optimizer.step()
    return counts


@pytest.mark.usefixtures("flushing")
@pytest.mark.parametrize("probed", [False, True])
def test_what_is_not_recorded_is_not_measured(tmp_path, probed):
    """From the start, and from the moment when the disk fails; the warning does not wait for a measured step."""
    model, optimizer = net()
    COUNTS.asked = 0

    def probe():
        COUNTS.asked += 1
        return model(torch.ones(2, 6)).square().mean()

    arguments = {"probe": probe} if probed else {}
    folder = tmp_path / "runs"
    folder.mkdir()
    with read_only(folder), pytest.warns(TraceWarning, match="Nothing of this run is recorded"):
        recorder = lsmooth.Recorder(model, optimizer, folder / "run.h5", every=lambda step: 1 // 0, **arguments)
    with recorder:
        assert evaluations(model, optimizer, recorder, range(5)) == [1] * 5
    assert COUNTS.asked == 0

    path = tmp_path / "other.h5"
    with lsmooth.Recorder(model, optimizer, path, coordinates=0, **arguments) as recorder:
        assert evaluations(model, optimizer, recorder, range(5)) == ([1] * 5 if probed else [8] + [7] * 4)
        assert recorder.failure is None
        recorder.flush()
        path.unlink()
        evaluations(model, optimizer, recorder, [5])
        end = time.monotonic() + 60
        while recorder.failure is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        latest, count = recorder.latest, COUNTS.asked
        with pytest.warns(TraceWarning, match=r"cannot be written any more \(it was moved or deleted\)"):
            assert evaluations(model, optimizer, recorder, range(6, 12)) == [1] * 6
        assert recorder.failure == f"{path} cannot be written any more (it was moved or deleted)."
        assert recorder.latest == latest
        assert COUNTS.asked == count


@pytest.mark.parametrize("sight", ["seen", "unseen"])
def test_a_run_that_could_not_be_recorded_can_be_resumed_where_it_can(tmp_path, sight):
    """What a checkpoint knows of a trace lives on through a run that could not write to it."""
    folder = tmp_path / "runs"
    folder.mkdir()
    path = folder / "run.h5"
    model, optimizer = net()
    with lsmooth.Recorder(model, optimizer, path, densities=True) as recorder:
        evaluations(model, optimizer, recorder, range(4))
        state = recorder.state_dict()
    before = path.read_bytes()
    with read_only(folder, 0o555 if sight == "seen" else 0):
        with pytest.warns(TraceWarning, match="Nothing of this run is recorded"):
            recorder = lsmooth.Recorder(model, optimizer, path, densities=True, mode="a")
        recorder.load_state_dict(state)
        evaluations(model, optimizer, recorder, range(4, 7))
        later = recorder.state_dict()
        recorder.close()
    assert path.read_bytes() == before
    assert (later["step"], later["rows"]) == (7, state["rows"])
    assert later["seconds"] > state["seconds"]
    assert torch.equal(later["densities"], state["densities"])
    with lsmooth.Recorder(model, optimizer, path, densities=True, mode="a") as recorder:
        recorder.load_state_dict(later)
        evaluations(model, optimizer, recorder, range(7, 10))
    with Trace(path) as trace:
        assert trace.steps.tolist() == [0, 1, 2, 3, 7, 8, 9]
        assert (np.diff(trace.time) > 0).all()
        assert trace.density_counts().steps == 7


def test_a_warning_that_is_made_an_error_leaves_nothing_attached(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    model, optimizer = net()
    with read_only(folder), warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)
        with pytest.raises(TraceWarning):
            lsmooth.Recorder(model, optimizer, folder / "run.h5")
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
