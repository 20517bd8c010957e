"""Notebooks and sweeps: a second attempt takes over, and a lost recorder keeps neither file nor model."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch
from loops import batches, classify, mlp, sgd

import lsmooth
from lsmooth.errors import TraceError


def attempt(path, mode="w", *, watch=False, fail=True, steps=3):
    """One run of a cell: returns a weak reference to its model, everything else being out of reach."""
    model = mlp()
    optimizer = sgd(model)
    recorder = lsmooth.Recorder(model, optimizer, path, mode=mode)
    if watch:
        criterion = recorder.watch(model, torch.nn.CrossEntropyLoss())
    for x, y in batches(steps):
        optimizer.zero_grad()
        if watch:
            criterion(model(x), y).backward()
        else:
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
        optimizer.step()
    return weakref.ref(model), recorder if not fail else None


def writers():
    return [thread for thread in threading.enumerate() if thread.name == "lsmooth-writer"]


def wait_until(condition):
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("watch", [False, True])
def test_a_recorder_out_of_reach_finishes_its_trace_and_keeps_no_model(watch, tmp_path):
    before = len(writers())
    models = [attempt(tmp_path / f"{i}.h5", watch=watch)[0] for i in range(3)]
    # The last rows are on their way to the writer's thread.
    assert wait_until(lambda: gc.collect() >= 0 and [model() for model in models] == [None] * 3)
    assert wait_until(lambda: len(writers()) == before)
    for i in range(3):
        with lsmooth.Trace(tmp_path / f"{i}.h5") as trace:
            assert trace.status_counts() == {"measured": 3}


def test_an_open_recorder_gives_way_to_another_that_replaces_its_file(tmp_path):
    model, first = attempt(tmp_path / "run.h5", fail=False)
    kept = model()
    _, second = attempt(tmp_path / "run.h5", fail=False, steps=5)
    assert "closed" in repr(first)
    assert "next step 5" in repr(second)
    second.close()
    # The first loop can go on, without being measured.
    x, y = batches(1)[0]
    first.backward(lambda: classify(kept, x, y))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert len(trace) == 5


def test_by_way_of_a_link_too(tmp_path):
    _, first = attempt(tmp_path / "run.h5", fail=False)
    (tmp_path / "link.h5").symlink_to(tmp_path / "run.h5")
    _, second = attempt(tmp_path / "link.h5", fail=False)
    assert "closed" in repr(first)
    second.close()


@pytest.mark.parametrize("mode", ["x", "a"])
def test_other_modes_take_nothing_away(mode, tmp_path):
    _, first = attempt(tmp_path / "run.h5", fail=False)
    with pytest.raises(TraceError):
        attempt(tmp_path / "run.h5", mode)
    assert "next step 3" in repr(first)
    first.close()


def test_a_sweep_whose_trials_raise(tmp_path):
    def trial(number):
        attempt(tmp_path / "sweep.h5", steps=number + 1)
        raise FloatingPointError(f"trial {number}")

    errors = []
    for number in range(4):
        try:
            trial(number)
        except FloatingPointError as error:
            # With the error, its frames are kept, and all that they hold.
            errors.append(error)
    with lsmooth.Trace(tmp_path / "sweep.h5") as trace:
        assert trace.status_counts() in ({"measured": 4}, {})
    errors.clear()
    gc.collect()
    assert wait_until(lambda: len(lsmooth.Trace(tmp_path / "sweep.h5")) == 4)


ENDS_WHILE_A_TRACE_IS_BEING_CLOSED = """
import gc, sys, time
import h5py, torch, lsmooth
from lsmooth.trace.writer import TraceWriter

real = TraceWriter.close

def slowly(self, next_step):
    with h5py._objects.phil:
        time.sleep(0.5)
        real(self, next_step)

def cell():
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = lsmooth.Recorder(model, optimizer, sys.argv[1])
    recorder.backward(lambda: model(torch.ones(2, 4)).square().mean())
    optimizer.step()

TraceWriter.close = slowly
cell()
gc.collect()
"""


def test_a_script_that_ends_while_a_lost_recorder_finishes_its_trace_waits_for_it(tmp_path):
    command = [sys.executable, "-c", ENDS_WHILE_A_TRACE_IS_BEING_CLOSED, str(tmp_path / "run.h5")]
    subprocess.run(command, check=True, timeout=120)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.state == "complete"
        assert len(trace) == 1
