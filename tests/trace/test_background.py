"""The writer's thread: a disk that is slow, stalled or failing holds up no step."""

import threading
import warnings

import numpy as np
import pytest
import torch
from small_run import train

from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


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
    monkeypatch.setattr("lsmooth.trace.background.QUEUE_BYTES", 50_000)
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
