"""What a run's logger is called with: the numbers of the trace, on the training thread, without ending training."""

import collections
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import batches, classify, mlp, seed_all

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.measure.scalars import OF_GROUP, OF_STEP

SMOOTHNESS, GRAD_NORM, STABLE = "lsmooth/smoothness", "lsmooth/grad_norm", "lsmooth/2_over_lr"
EDGE = "lsmooth/edge_ratio"


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
        self.scalars = {SMOOTHNESS: {}, GRAD_NORM: {}, STABLE: {}, EDGE: {}}
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
        edge = trace.curvature().set_index("step")["edge_ratio"]
        np.testing.assert_allclose(list(heard.scalars[EDGE].values()), edge[steps], rtol=1e-6)
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


@pytest.mark.parametrize("by", [None, "module"])
def test_tensorboard_shows_them(by, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "board") as writer:
        train(tmp_path / "run.h5", writer, every=10, log_by=by)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    # What stands before the slash is a folder: one of the whole model, and one of the groups for each quantity.
    folders = ["lsmooth_smoothness", "lsmooth_grad_norm", "lsmooth_edge_ratio"] if by else []
    groups = [f"{folder}/{group}" for folder in folders for group in ("0", "2")]
    assert sorted(events.Tags()["scalars"]) == sorted([SMOOTHNESS, GRAD_NORM, STABLE, EDGE, *groups])
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        shown = events.Scalars(SMOOTHNESS)
        assert [event.step for event in shown] == trace.steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
        np.testing.assert_allclose([event.value for event in shown], trace.smoothness()["smoothness"], rtol=1e-6)


@pytest.mark.parametrize("by", ["module", "parameter", r"^(\d)\.", {"2.weight": "last/one"}])
def test_groups_are_heard_of_with_the_traces_numbers(by, tmp_path):
    heard = collections.defaultdict(dict)
    train(tmp_path / "run.h5", lambda name, value, step: heard[name].update({step: value}), steps=5, log_by=by)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        smoothness, curvature = trace.smoothness(by=by), trace.curvature(by=by)
        names = {SMOOTHNESS, GRAD_NORM, STABLE, EDGE}
        for group in smoothness["group"].unique():
            mine = smoothness[smoothness["group"] == group]
            edge = curvature[curvature["group"] == group]["edge_ratio"]
            for name, expected in (
                ("smoothness", mine["smoothness"]), ("grad_norm", mine["grad_norm"]), ("edge_ratio", edge),
            ):  # fmt: skip
                found = heard[f"lsmooth_{name}/{group}"]
                assert list(found) == [0, 1, 2, 3, 4]
                np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5)
                names.add(f"lsmooth_{name}/{group}")
    assert set(heard) == names


def test_what_is_not_finite_is_not_sent(tmp_path):
    """Without the endpoint there is no edge ratio, and a layer that stands still has no smoothness."""
    seed_all()
    model, heard = mlp(), collections.defaultdict(dict)
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=0.1
    )
    log = lambda name, value, step: heard[name].update({step: value})  # noqa: E731
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", log=log, log_by="module", endpoint=False) as recorder:
        for x, y in batches(2):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
    assert set(heard) == {
        SMOOTHNESS, GRAD_NORM, STABLE, "lsmooth_smoothness/2", "lsmooth_grad_norm/0", "lsmooth_grad_norm/2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log": None, "log_by": "module"}, "give a log, or leave log_by out"),
        ({"log_by": "nothing"}, "No parameter falls"),
    ],
)
def test_groups_that_cannot_be_logged_are_refused(arguments, message, tmp_path):
    with pytest.raises(InvalidArgumentError, match=message):
        train(tmp_path / "run.h5", **{"log": print, **arguments})
    assert not (tmp_path / "run.h5").exists()


def test_the_page_lists_every_scalar():
    page = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")
    for name in [*OF_STEP, *(template.format("GROUP") for template in OF_GROUP)]:
        assert f"`{name}`" in page
