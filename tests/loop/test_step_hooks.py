"""Optimizers of all makes: each step is seen once, from before the outermost `step` to after it."""

import collections
import copy
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from loops import batches, classify, differences, everything, mlp, seed_all, sgd
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError


class Lookahead:
    """Slow weights follow the fast ones; no `torch.optim.Optimizer`, as wrappers often are."""

    def __init__(self, base):
        self.base = base
        self.slow = [[p.detach().clone() for p in group["params"]] for group in base.param_groups]
        self.steps = 0

    @property
    def param_groups(self):
        return self.base.param_groups

    def zero_grad(self):
        self.base.zero_grad()

    def state_dict(self):
        return self.base.state_dict()

    @torch.no_grad()
    def step(self, closure=None):
        returned = self.base.step(closure)
        self.steps += 1
        if self.steps % 2 == 0:
            for group, slow in zip(self.base.param_groups, self.slow, strict=True):
                for p, other in zip(group["params"], slow, strict=True):
                    p.copy_(other.lerp_(p, 0.5))
        return returned


class Elsewhere(Lookahead):
    """The base optimizer steps at other weights than those of the gradient, as schedule-free wrappers do."""

    @torch.no_grad()
    def step(self, closure=None):
        weights = [(p, other) for group, slow in zip(self.base.param_groups, self.slow, strict=True)
                   for p, other in zip(group["params"], slow, strict=True)]  # fmt: skip
        before = [p.clone() for p, _ in weights]
        for p, other in weights:
            p.copy_(other)
        self.base.step(closure)
        for (p, other), mine in zip(weights, before, strict=True):
            other.copy_(p)
            p.copy_(0.9 * mine + 0.1 * p)


class Unhooked(torch.optim.Optimizer):
    """Does not initialise its parent, so that its class never learns to call hooks."""

    def __init__(self, base):
        self.base, self.param_groups, self.state, self.defaults = base, base.param_groups, base.state, {}
        self._optimizer_step_pre_hooks = self._optimizer_step_post_hooks = collections.OrderedDict()

    def step(self, closure=None):
        return self.base.step(closure)


class Parental(torch.optim.SGD):
    """Its `step` calls its parent's: once any SGD has been made, both call hooks."""

    def step(self, closure=None):
        return super().step(closure)


def parental(model):
    sgd(model)
    return Parental(model.parameters(), lr=0.1, momentum=0.9)


KINDS = {
    "lookahead": lambda model: Lookahead(sgd(model, momentum=0.9)),
    "elsewhere": lambda model: Elsewhere(sgd(model, momentum=0.9)),
    "unhooked": lambda model: Unhooked(sgd(model, momentum=0.9)),
    "parental": parental,
}


def trained(make, path=None, count=6):
    """Train; return the trace's rows of weights and all that a recorder could have changed."""
    seed_all()
    model = mlp(nn.Dropout(0.2))
    optimizer = make(model)
    recorder = lsmooth.Recorder(model, optimizer, path) if path is not None else None
    weights = [[p.detach().clone() for p in model.parameters()]]
    for x, y in batches(count):
        optimizer.zero_grad()
        if recorder is None:
            classify(model, x, y).backward()
        else:
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
        optimizer.step()
        weights.append([p.detach().clone() for p in model.parameters()])
    if recorder is not None:
        recorder.close()
        assert "step" not in vars(optimizer)
    return everything(model, getattr(optimizer, "base", optimizer)), weights


@pytest.mark.parametrize("kind", KINDS)
def test_the_outermost_step_is_measured_once(kind, tmp_path):
    bare, weights = trained(KINDS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched, _ = trained(KINDS[kind], tmp_path / "run.h5")
    assert differences(bare, watched) == []
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 6}
        moved = [[float((b - a).norm()) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(weights)]
        np.testing.assert_allclose(trace.read("step_norm"), moved, rtol=1e-5)


def test_gradient_changes_of_a_wrapper_around_another_point_are_those_of_a_quadratic(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1, bias=False), torch.randn(8, 4)
    optimizer = Elsewhere(torch.optim.SGD(model.parameters(), lr=0.1))
    weights = [model.weight.detach().clone()]
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", gammas=(0.5,)) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            recorder.backward(lambda: model(x).square().mean())
            optimizer.step()
            weights.append(model.weight.detach().clone())
    hessian = 2 * x.T @ x / len(x)
    expected = [float((0.5 * (b - a) @ hessian).norm()) for a, b in itertools.pairwise(weights)]
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        np.testing.assert_allclose(trace.read("grad_diff")[:, 0, 0], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["ScheduleFreeWrapper", "ScheduleFreeWrapperReference"])
def test_the_wrappers_of_schedulefree(name, tmp_path):
    wrapper = getattr(pytest.importorskip("schedulefree"), name)

    def make(model):
        optimizer = wrapper(sgd(model), momentum=0.9)
        optimizer.train()
        return optimizer

    bare, weights = trained(make)
    watched, _ = trained(make, tmp_path / "run.h5")
    assert differences(bare, watched) == []
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 6}
        moved = [[float((b - a).norm()) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(weights)]
        np.testing.assert_allclose(trace.read("step_norm"), moved, rtol=1e-5)


def test_radam_schedule_free_takes_no_step_in_its_silent_phase(tmp_path):
    """Its learning rate is 0 until the variance of its second moment can be told: these steps displace nothing."""
    schedulefree = pytest.importorskip("schedulefree")
    model = mlp()
    optimizer = schedulefree.RAdamScheduleFree(model.parameters(), lr=0.1)
    optimizer.train()
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(8):
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
            still = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            assert still == (recorder.step <= 4)
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"no_displacement": 4, "measured": 4}


def test_the_optimizer_inside_of_such_a_wrapper_leads_to_the_wrapper(tmp_path):
    seed_all()
    model = mlp()
    optimizer = Elsewhere(sgd(model))
    with (
        warnings.catch_warnings(record=True) as told,
        lsmooth.Recorder(model, optimizer.base, tmp_path / "run.h5") as recorder,
    ):
        warnings.simplefilter("always")
        for x, y in batches(5):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        assert "give the recorder the wrapper, whose step() the loop calls; if the loop itself" in recorder.failure
        assert [str(warning.message) for warning in told] == [recorder.failure]
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"moved": 5}


def test_what_stands_over_the_replaced_step_stays_and_works(tmp_path):
    model = mlp()
    optimizer = Unhooked(sgd(model))
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    over = optimizer.step
    for i, (x, y) in enumerate(batches(3)):
        optimizer.zero_grad()
        recorder.backward(lambda x=x, y=y: classify(model, x, y))
        before = model[0].weight.detach().clone()
        optimizer.step()
        assert not torch.equal(model[0].weight, before)
        scheduler.step()
        if i == 1:
            recorder.close()
    assert optimizer.step is over
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 2}
        np.testing.assert_allclose(trace.read("lr")[:, 0] / trace.read("lr")[0, 0], [1, 0.1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_of_the_optimizer_is_not_recorded(copied, tmp_path):
    model = mlp()
    optimizer = Lookahead(sgd(model))
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        other = copied(optimizer)
        other.step()
        assert (other.steps, optimizer.steps, recorder.step) == (1, 0, 0)


def test_an_optimizer_whose_step_cannot_be_replaced_is_refused(tmp_path):
    class Slotted:
        __slots__ = ("param_groups",)

        def step(self):
            pass

    model = mlp()
    optimizer = Slotted()
    optimizer.param_groups = sgd(model).param_groups
    with pytest.raises(InvalidArgumentError, match=r"Slotted is not a torch\.optim\.Optimizer"):
        lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
