"""The training loop: reports, schedules, exact continuation, and what the recorder must not change."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lsmooth
from lsmooth import tasks
from lsmooth.tasks.plan import make_plan
from lsmooth.tasks.task import Baseline, Problem, Settings, epoch_generator
from lsmooth.tasks.training import TrainingRun

TINY = {"embedding": 8, "heads": 1, "feed_forward": 8, "sequence": 6, "batch_size": 4, "report_every": 9, "steps": 20}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToySettings(Settings):
    batch_size: int = 3
    epochs: int = 2


class Toy(Problem):
    """Regression with dropout and a state carried along the epoch; its epochs have 5 batches."""

    def __init__(self, settings, seed=0):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        super().__init__(settings, model, seed=seed, steps_per_epoch=5, examples=15)

    def batches(self, epoch):
        generator = epoch_generator(self.seed, epoch)
        for _ in range(5):
            yield torch.randn(3, 2, generator=generator)

    def drawn(self, which, rng):
        return torch.stack((which, which % 4), dim=1) / 15

    def loss(self, batch, carried):
        state = torch.zeros(()) if carried is None else carried
        out = self.model(batch).mean() + 0.1 * state
        return (out - 1).square(), out

    def metrics(self, split):
        out = self.model(torch.ones(1, 2)).mean()
        return {"loss": (out - 1).square(), "out": out}

    def baseline(self):
        return Baseline("one", 1.0)

    def lr_factor(self, step, epoch, batch):
        return 0.5**epoch / (1 + step)

    def clip_factor(self, step, epoch, batch):
        return 1.0 + step


def toy_run(seed=0, **settings):
    problem = Toy(ToySettings(**settings), seed)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    return TrainingRun(problem, optimizer, max_norm=settings.get("max_norm"), report_every=settings.get("report_every"))


def states(run):
    """Everything that a run has come to, as flat tensors by name."""
    found = {f"model.{name}": value.clone() for name, value in run.problem.model.state_dict().items()}
    for number, state in run.optimizer.state_dict()["state"].items():
        found |= {
            f"optimizer.{number}.{name}": torch.as_tensor(value).clone()
            for name, value in state.items()
            if value is not None
        }
    found["random"] = torch.get_rng_state()
    return found


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_an_epoch_is_reported_with_its_mean_loss_and_clipped_steps():
    run = toy_run(max_norm=2.0)
    # The same in the plainest way.
    problem = Toy(ToySettings(max_norm=2.0))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
    expected, step = [], 0
    for epoch in range(2):
        losses, clipped, carried = [], 0, None
        for batch in problem.batches(epoch):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.5**epoch / (1 + step)
            optimizer.zero_grad()
            loss, carried = problem.loss(batch, carried)
            carried = carried.detach()
            loss.backward()
            norm = torch.cat([p.grad.flatten() for p in problem.model.parameters()]).norm().item()
            if norm > 2.0:
                clipped += 1
            torch.nn.utils.clip_grad_norm_(problem.model.parameters(), 2.0)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        expected.append((sum(losses) / 5, clipped))
    torch.manual_seed(0)
    run = toy_run(max_norm=2.0)
    assert list(run.steps()) == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]
    assert [(report.step, report.epoch, report.steps) for report in run.reports] == [(5, 1.0, 5), (10, 2.0, 5)]
    for report, (loss, clipped) in zip(run.reports, expected, strict=True):
        assert report.train_loss == pytest.approx(loss, rel=1e-5)
        assert report.clipped == clipped
        assert set(report.metrics) == {"loss", "out"}
    assert 0 < expected[0][1] < 5 or 0 < expected[1][1] < 5, "the test has to see both clipped and unclipped steps"
    mine = run.problem.model.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in problem.model.state_dict().items())


class Uneven(Toy):
    """Its epochs have 5 and 4 batches."""

    def batches(self, epoch):
        yield from itertools.islice(super().batches(epoch), 5 - epoch)


@pytest.mark.parametrize(
    ("settings", "reported"),
    [({}, [(5, 1.0), (9, 2.0)]), ({"report_every": 3}, [(3, 0.6), (6, 1.2), (9, 1.8)])],
)
def test_an_epoch_ends_with_a_whole_number_whatever_its_length(settings, reported):
    problem = Uneven(ToySettings(**settings))
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    run = TrainingRun(problem, optimizer, report_every=settings.get("report_every"))
    assert list(run.steps())[-1] == 9
    assert [(report.step, report.epoch) for report in run.reports] == [
        (step, pytest.approx(epoch)) for step, epoch in reported
    ]


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({"steps": 7}, [5, 7]),
        ({"steps": 5}, [5]),
        ({"steps": 8, "report_every": 3}, [3, 6, 8]),
        ({"report_every": 4}, [4, 8, 10]),
        ({"report_every": 5}, [5, 10]),
        ({"epochs": 1, "steps": 12}, [5, 10, 12]),
    ],
)
def test_where_reports_come(settings, reported):
    run = toy_run(**settings)
    for _ in run.steps():
        pass
    assert [report.step for report in run.reports] == reported
    assert sum(report.steps for report in run.reports) == run.step == reported[-1]
    assert run.done


def test_an_optimizers_own_clipping_threshold_is_scaled():
    run = toy_run()
    run.optimizer.param_groups[0]["max_norm"] = 2.0
    run = TrainingRun(run.problem, run.optimizer)
    seen = []
    for _ in run.steps():
        seen.append(run.optimizer.param_groups[0]["max_norm"])
        if run.step == 3:
            break
    assert seen == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("at", [1, 4, 5, 6, 9])
@pytest.mark.parametrize("report_every", [None, 3])
def test_a_run_continues_exactly_from_any_step(at, report_every):
    whole = toy_run(report_every=report_every)
    for _ in whole.steps():
        pass
    expected = states(whole)
    first = toy_run(report_every=report_every)
    for _ in first.steps():
        if first.step == at:
            break
    kept = first.state_dict()
    torch.manual_seed(99)
    second = toy_run(report_every=report_every)
    second.load_state_dict(kept)
    for _ in second.steps():
        pass
    assert same(states(second), expected)
    assert [dataclasses.replace(r, seconds=0) for r in second.reports] == [
        dataclasses.replace(r, seconds=0) for r in whole.reports
    ]


class Reads(TorchDispatchMode):
    """Counts the operations that read a number from the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero):
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device_between_reports():
    run = toy_run(max_norm=0.5, steps=9)
    with Reads() as reads:
        steps = run.steps()
        for _ in range(4):
            next(steps)
        assert reads.count == 0
        float(run.loss)
        assert reads.count == 1, "the test has to see what it looks for"


def test_a_diverged_run_ends_at_its_next_report():
    problem = Toy(ToySettings(report_every=2))
    run = TrainingRun(problem, torch.optim.SGD(problem.model.parameters(), lr=1e30), report_every=2)
    for _ in run.steps():
        pass
    assert run.step < 10
    assert run.reports[-1].diverged
    assert not math.isfinite(run.reports[-1].train_loss)
    assert run.done


@pytest.fixture(scope="module")
def corpus():
    return tasks.get("transformer-encoder").find_data(None)


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "generalized-signsgd"])
def test_the_demos_model_ends_bit_identical_with_and_without_the_recorder(optimizer, tmp_path, corpus):
    lr = {"sgd-momentum": 0.5, "generalized-signsgd": 1e-3}[optimizer]
    plan, _ = make_plan(
        "transformer-encoder", optimizer=optimizer, changes={"lr": lr, "batch_size": 4, "steps": 50}, seed=5
    )
    bare = plan.start(corpus)
    for _ in bare.steps():
        pass
    expected = states(bare)
    assert any(name.startswith("optimizer.") for name in expected)
    watched = plan.start(corpus)
    with lsmooth.Recorder(watched.problem.model, watched.optimizer, tmp_path / "run.h5", every=7) as recorder:
        for _ in watched.steps(recorder):
            pass
    assert same(states(watched), expected)
    assert bare.reports[-1].metrics == watched.reports[-1].metrics
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == list(range(0, 50, 7))
        assert trace.status_counts() == {"measured": 8}


def test_bfloat16_and_compilation_are_asked_for(corpus):
    plan, _ = make_plan("transformer-encoder", changes=TINY | {"steps": 1}, amp=True)
    run = plan.start(corpus)
    seen = []
    run.problem.model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    next(run.steps())
    assert seen[0] == torch.bfloat16
    compiled = dataclasses.replace(plan, amp=False, compile=True).start(corpus)
    assert compiled.problem.model._compiled_call_impl is not None
    assert plan.start(corpus).problem.model._compiled_call_impl is None
