"""Probes of a training run: which examples they are, and that they are the recorder's own probes."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_tasks import TINY

import lsmooth
from lsmooth import tasks
from lsmooth.errors import InvalidArgumentError
from lsmooth.tasks.plan import make_plan
from lsmooth.tasks.probes import probes_of
from lsmooth.tasks.session import Session
from lsmooth.trace.layout import FIELDS

RECORDING = {"every": 2, "coordinates": 2, "probe": 8, "probe_size": 4}


@pytest.fixture(scope="module")
def plans():
    """Return a plan of six tiny steps, and the stand-in, of each task."""
    return {name: make_plan(name, changes={**changes, "steps": 6, "report_every": 6}) for name, changes in TINY.items()}


@pytest.fixture
def problem(plans):
    def build(name):
        plan, data = plans[name]
        if name == "resnet20":
            plan = plan.with_hyperparameters({"augment": False})
        return plan.start(data).problem

    return build


def assert_same_trace(one, two):
    with lsmooth.Trace(one) as a, lsmooth.Trace(two) as b:
        assert a.steps.tolist() == b.steps.tolist() == [0, 2, 4]
        for field in FIELDS:
            assert a.has(field.name) == b.has(field.name)
            if a.has(field.name) and field.name != "time":
                np.testing.assert_array_equal(a.read(field.name), b.read(field.name), err_msg=field.name)


def stopped(plan, data, path):
    """Leave a run after three of its six steps."""
    with Session(plan, path, RECORDING, data=data) as session:
        for step in session.run.steps(session.recorder):
            if step == 3:
                break
        session.save()


# --- examples ---


@pytest.mark.parametrize("name", tasks.NAMES)
def test_the_loss_of_a_probe_is_that_of_its_examples_joined_as_in_a_batch(name, problem):
    built = problem(name)
    built.model.eval()
    which = torch.tensor([0, 5, built.examples - 1, 3])
    rng = np.random.default_rng(0)
    whole = built.loss(built.drawn(which, rng), None)[0].item()
    alone = [built.loss(built.drawn(which[i : i + 1], rng), None)[0].item() for i in range(4)]
    assert len(set(alone)) == 4
    assert whole == pytest.approx(sum(alone) if built.loss_is_a_sum else np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("name", ["transformer-encoder", "awd-lstm"])
def test_windows_are_all_of_the_text_and_none_twice(name, problem):
    built = problem(name)
    length = getattr(built.settings, "sequence", None) or built.settings.bptt
    words, following = built.drawn(torch.arange(built.examples), np.random.default_rng(0))[:2]
    for part, shift in ((words, 0), (following, 1)):
        streams = part.reshape(built.settings.batch_size, -1)
        assert torch.equal(streams, built.text[:, shift : shift + streams.shape[1]])
    assert built.text.shape[1] - 1 - streams.shape[1] < length


def test_windows_of_gpt2_are_those_that_it_trains_on(problem):
    built = problem("gpt2")
    windows = built.drawn(torch.arange(built.examples), np.random.default_rng(0))
    trained = torch.cat(list(built.batches(0)))
    assert set(map(tuple, trained.tolist())) <= set(map(tuple, windows.tolist()))


def test_images_of_a_probe_are_cropped_and_flipped_once(plans, problem):
    plan, data = plans["resnet20"]
    augmenting, plain = plan.start(data).problem, problem("resnet20")
    which = torch.arange(40)
    one, same, other = (augmenting.drawn(which, np.random.default_rng(seed)).pixels for seed in (1, 1, 2))
    there = plain.drawn(which, np.random.default_rng(1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, there.pixels)
    assert torch.equal(there.pixels, plain.train.pixels[:40])
    assert torch.equal(there.labels, plain.train.labels[:40])


def test_the_seed_decides_which_examples_and_none_comes_twice(plans):
    plan, data = plans["transformer-encoder"]

    def drawn(seed, count):
        run = dataclasses.replace(plan, seed=seed).start(data)
        seen = []
        run.problem.drawn = lambda which, rng: seen.append(which) or which
        probes_of(run, count, 4)
        assert [len(part) for part in seen] == [4] * (count // 4)
        return torch.cat(seen).tolist()

    assert drawn(3, 40) == drawn(3, 40) != drawn(4, 40)
    every = plan.start(data).problem.examples // 4 * 4
    assert len(set(drawn(0, every))) == every
    with pytest.raises(InvalidArgumentError, match=r"training examples, too few for probes of 1,000,000"):
        drawn(0, 1_000_000)
    with pytest.raises(InvalidArgumentError, match="a multiple of 4, such as 40"):
        drawn(0, 41)


# --- what is measured ---


@pytest.mark.parametrize("name", tasks.NAMES)
def test_a_run_measures_what_the_recorder_does_with_these_probes_by_hand(name, plans, tmp_path):
    plan, data = plans[name]
    with Session(plan, tmp_path / "run.h5", RECORDING, data=data, checkpoint_seconds=None) as session:
        session.train()
    run = plan.start(data)
    problem = run.problem
    rng = np.random.default_rng((plan.seed, 0, 1))
    which = rng.choice(problem.examples, 8, replace=False)
    probes = []
    for part in (which[:4], which[4:]):
        batch = problem.drawn(torch.from_numpy(part), rng)
        probes.append(lambda batch=batch: problem.loss(batch, None))
    settings = {"every": 2, "coordinates": 2, "probe_size": 4, "seed": plan.seed}
    with lsmooth.Recorder(run.model, run.optimizer, tmp_path / "hand.h5", probe=probes, **settings) as recorder:
        for _ in run.steps(recorder):
            pass
    assert_same_trace(tmp_path / "run.h5", tmp_path / "hand.h5")
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 3}
        assert (trace.metadata["probes"], trace.metadata["probe_size"]) == (2, 4)
        assert trace.metadata["objective"] == "mean of 2 probe losses, 4 examples each"
        assert (trace.read("grad_noise").sum(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("name", "every", "calls"),
    [
        ("transformer-encoder", 1, [17, 13, 13]),
        ("transformer-encoder", 2, [17, 1, 15]),
        # Batch norm changes its buffers.
        ("resnet20", 1, [17, 15, 15]),
    ],
)
def test_what_a_step_with_probes_costs(name, every, calls, plans, tmp_path):
    """Training's loss, and two probes at seven positions; at the first step, once more at x_t."""
    plan, data = plans[name]
    recording = {**RECORDING, "every": every}
    with Session(plan, tmp_path / "run.h5", recording, data=data, checkpoint_seconds=None) as session:
        loss, seen, counts = session.run.problem.loss, [], []
        session.run.problem.loss = lambda *batch: seen.append(1) or loss(*batch)
        for _ in zip(range(3), session.run.steps(session.recorder), strict=False):
            counts.append(len(seen))
            seen.clear()
    assert counts == calls


def test_probes_change_nothing_of_the_run(plans, tmp_path):
    plan, data = plans["awd-lstm"]
    bare = plan.start(data)
    losses = [bare.loss.item() for _ in bare.steps()]
    with Session(plan, tmp_path / "run.h5", RECORDING, data=data, checkpoint_seconds=None) as session:
        assert [session.run.loss.item() for _ in session.run.steps(session.recorder)] == losses
    for name, value in bare.problem.model.state_dict().items():
        assert torch.equal(value, session.run.problem.model.state_dict()[name]), name


@pytest.mark.parametrize("name", ["awd-lstm", "resnet20"])
def test_a_resumed_run_has_the_probes_that_it_was_begun_with(name, plans, tmp_path):
    plan, data = plans[name]
    with Session(plan, tmp_path / "whole.h5", RECORDING, data=data) as session:
        session.train()
    stopped(plan, data, tmp_path / "run.h5")
    torch.manual_seed(9)
    with Session.resume(tmp_path / "run.h5") as again:
        assert again.run.step == 3
        again.train()
    assert_same_trace(tmp_path / "run.h5", tmp_path / "whole.h5")


def test_mixed_precision_holds_for_probes_too(plans, tmp_path):
    plan, data = plans["transformer-encoder"]
    losses = {}
    for name, amp, autocast in (("mixed", True, True), ("full", True, False), ("single", False, True)):
        recording = {**RECORDING, "autocast": autocast}
        with Session(dataclasses.replace(plan, amp=amp), tmp_path / f"{name}.h5", recording, data=data) as session:
            session.train()
        with lsmooth.Trace(tmp_path / f"{name}.h5") as trace:
            losses[name] = trace.loss[0]
    assert losses["full"] == losses["single"] != losses["mixed"]
