"""What a run's log hears: the numbers of the trace, on the training thread, and no trouble for the training."""

import math
import threading

import numpy as np
import pytest
import torch
from loops import batches, classify, mlp, seed_all

import lsmooth
from lsmooth.errors import InvalidArgumentError

SMOOTHNESS, GRAD_NORM, STABLE = "lsmooth/smoothness", "lsmooth/grad_norm", "lsmooth/2_over_lr"


def train(path, log, steps=70, skip=(), **arguments):
    seed_all()
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[2].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    with lsmooth.Recorder(model, optimizer, path, log=log, **arguments) as recorder:
        for i, (x, y) in enumerate(batches(steps)):
            optimizer.zero_grad()
            recorder.backward(lambda x=x * (math.nan if i in skip else 1), y=y: classify(model, x, y))
            if i not in skip:
                optimizer.step()
            scheduler.step()
    return [p.detach().clone() for p in model.parameters()]


class Heard:
    def __init__(self):
        self.scalars = {SMOOTHNESS: {}, GRAD_NORM: {}, STABLE: {}}
        self.threads = set()

    def add_scalar(self, name, value, step):
        assert step not in self.scalars[name]
        assert isinstance(value, float)
        self.scalars[name][step] = value
        self.threads.add(threading.current_thread())


@pytest.mark.parametrize("kind", ["object", "function"])
def test_each_well_measured_step_is_heard_of_once_with_the_traces_numbers(kind, tmp_path):
    heard = Heard()
    train(tmp_path / "run.h5", heard if kind == "object" else heard.add_scalar, skip=(4, 66))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        cloud = trace.cloud("global")
        steps = trace.steps[cloud.usable[:, 0] if cloud.usable.ndim == 2 else cloud.usable].tolist()
        assert len(steps) == 68
        rates = dict(zip(trace.steps.tolist(), trace.lr.max(axis=1), strict=True))
        frame = trace.smoothness().set_index("step")
        for values in heard.scalars.values():
            assert list(values) == steps
        np.testing.assert_allclose(list(heard.scalars[SMOOTHNESS].values()), frame["smoothness"][steps], rtol=1e-6)
        np.testing.assert_allclose(list(heard.scalars[GRAD_NORM].values()), frame["grad_norm"][steps], rtol=1e-6)
        np.testing.assert_allclose(list(heard.scalars[STABLE].values()), [2 / rates[step] for step in steps])
    assert heard.threads == {threading.main_thread()}


def test_a_log_changes_no_weights(tmp_path):
    for a, b in zip(train(tmp_path / "a.h5", None), train(tmp_path / "b.h5", Heard()), strict=True):
        assert torch.equal(a, b)


def test_blocks_are_heard_of_while_the_run_goes_on(tmp_path):
    seed_all()
    model, heard = mlp(), Heard()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", log=heard) as recorder:
        for i, (x, y) in enumerate(batches(3)):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
            recorder.flush()
            assert list(heard.scalars[SMOOTHNESS]) == list(range(i + 1))


def test_a_log_that_fails_is_warned_about_once_and_left_alone(tmp_path):
    calls = []

    def log(name, value, step):
        calls.append(step)
        raise ConnectionError("no route")

    with pytest.warns(UserWarning, match=r"ConnectionError: no route.*training and the trace go on"):
        train(tmp_path / "run.h5", log)
    assert calls == [0]
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert len(trace) == 70


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="has no add_scalar"):
        train(tmp_path / "run.h5", "tensorboard")
    assert not (tmp_path / "run.h5").exists()


def test_tensorboard_shows_them(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "board") as writer:
        train(tmp_path / "run.h5", writer, every=10)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == sorted([SMOOTHNESS, GRAD_NORM, STABLE])
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        shown = events.Scalars(SMOOTHNESS)
        assert [event.step for event in shown] == trace.steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
        np.testing.assert_allclose([event.value for event in shown], trace.smoothness()["smoothness"], rtol=1e-6)
