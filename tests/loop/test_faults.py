"""What a loop does in the middle of a run, and user code that fails when it is evaluated again, end no training."""

import contextlib
import itertools
import sys
import warnings

import numpy as np
import pytest
import torch
from loops import batches, classify, differences, everything, mlp, not_put_back, seed_all, sgd
from torch import nn

import lsmooth
from lsmooth.errors import RecorderError
from lsmooth.replay import replaying
from lsmooth.trace.layout import Status


def trained(path, loop, make=sgd):
    """Train by `loop(model, optimizer, backward)`, with a recorder where there is a path; return all that is left."""
    seed_all()
    model = mlp()
    optimizer = make(model.parameters() if make is not sgd else model)
    if path is None:
        loop(model, optimizer, lambda closure: closure().backward())
    else:
        with lsmooth.Recorder(model, optimizer, path) as recorder:
            loop(model, optimizer, recorder.backward)
    return everything(model, optimizer)


def unchanged(tmp_path, loop, warning, make=sgd):
    """Check that a loop ends as it does alone, with one warning; return the trace."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorded = trained(tmp_path / "run.h5", loop, make)
    assert differences(trained(None, loop, make), recorded) == []
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    assert len(said) == (warning is not None), said
    if warning is not None:
        assert warning in said[0]
    return lsmooth.Trace(tmp_path / "run.h5")


def test_an_epoch_without_backward_in_the_middle(tmp_path):
    def loop(model, optimizer, backward):
        for i, (x, y) in enumerate(batches(9)):
            optimizer.zero_grad()
            if i // 3 != 1:
                backward(lambda x=x, y=y: classify(model, x, y))
            else:
                model(x)
            optimizer.step()

    trace = unchanged(tmp_path, loop, "A step is not measured, and training goes on: optimizer.step() was called")
    assert trace.steps.tolist() == [0, 1, 2, 6, 7, 8]
    assert trace.status_counts() == {"measured": 6}


def test_a_loss_that_is_none_in_the_middle_passes_the_batch_over(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for i, (x, y) in enumerate(batches(4)):
            optimizer.zero_grad()
            loss = recorder.backward(lambda i=i, x=x, y=y: None if i == 2 else classify(model, x, y))
            assert (loss is None) == (i == 2)
            optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").steps.tolist() == [0, 1, 3]


def test_a_first_loss_that_is_none_is_a_mistake(tmp_path):
    model = mlp()
    with (
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5") as recorder,
        pytest.raises(RecorderError, match="returned NoneType; return the loss"),
    ):
        recorder.backward(lambda: None)


def test_a_sparse_gradient_in_the_middle(tmp_path):
    def run(path):
        seed_all()
        words = nn.Embedding(10, 3)
        optimizer = torch.optim.SGD(words.parameters(), lr=0.1)
        with lsmooth.Recorder(words, optimizer, path) if path else contextlib.nullcontext() as recorder:
            for i in range(4):
                words.sparse = i == 2
                optimizer.zero_grad()

                def closure(i=i):
                    return words(torch.tensor([i, 3])).square().sum()

                closure().backward() if recorder is None else recorder.backward(closure)
                optimizer.step()
        return words.weight.detach()

    with pytest.warns(UserWarning, match="weight has a sparse gradient"):
        recorded = run(tmp_path / "run.h5")
    assert torch.equal(run(None), recorded)
    assert lsmooth.Trace(tmp_path / "run.h5").steps.tolist() == [0, 1, 3]


def test_errors_of_one_kind_are_told_once(tmp_path):
    def loop(model, optimizer, backward):
        made = not_put_back(counts={})
        for i, (x, y) in enumerate(batches(5)):
            optimizer.zero_grad()

            def closure(i=i, x=x, y=y):
                made.counts[i] = made.counts.get(i, 0) + 1
                if i > 0 and made.counts[i] == 3:
                    raise ZeroDivisionError(f"in call {made.counts[i]}")
                return classify(model, x, y)

            backward(closure)
            optimizer.step()

    trace = unchanged(tmp_path, loop, "Step 1 is flagged, since its loss could not be evaluated again")
    assert trace.status.tolist() == [Status.MEASURED] + [Status.NON_FINITE | Status.NOT_REPEATED] * 4


def test_a_replay_in_which_the_loss_calls_exit_costs_one_measurement(tmp_path):
    """As losses do that end a run which diverges, when they are evaluated beyond it."""

    def loop(model, optimizer, backward):
        for i, (x, y) in enumerate(batches(4)):
            optimizer.zero_grad()

            def loss(i=i, x=x, y=y):
                if i == 2 and replaying():
                    sys.exit("diverged")
                return classify(model, x, y)

            backward(loss)
            optimizer.step()

    trace = unchanged(
        tmp_path, loop, "again, and training goes on: The loss called sys.exit when it was evaluated again"
    )
    assert [bool(status & Status.NON_FINITE) for status in trace.status] == [False, False, True, False]


def test_steps_of_another_optimizer_are_missed_within_five(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for i, (x, y) in enumerate(batches(8)):
            if i == 2:
                optimizer = torch.optim.Adam(model.parameters())
            optimizer.zero_grad()
            unseen = "no step of the SGD that the recorder was given is seen"
            with pytest.warns(UserWarning, match=unseen) if i == 5 else contextlib.nullcontext():
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        assert "give the recorder the optimizer whose step() the loop calls" in recorder.failure
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts()["measured"] == 2


class NoRate(torch.optim.Optimizer):
    """Finds its own step size: its groups have no lr."""

    def __init__(self, parameters):
        super().__init__(parameters, {"damping": 1.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad / (group["damping"] + p.grad.norm()))


class RateNone(NoRate):
    def __init__(self, parameters):
        torch.optim.Optimizer.__init__(self, parameters, {"damping": 1.0, "lr": None})


def three_steps(model, optimizer, backward):
    for x, y in batches(3):
        optimizer.zero_grad()
        backward(lambda x=x, y=y: classify(model, x, y))
        optimizer.step()


@pytest.mark.parametrize("make", [NoRate, RateNone])
def test_an_optimizer_without_a_learning_rate(tmp_path, make):
    trace = unchanged(tmp_path, three_steps, None, make)
    assert trace.status_counts() == {"measured": 3}
    assert np.isnan(trace.lr).all()
    assert np.isfinite(trace.cloud().smoothness).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_frozen_parameters_of_dtypes_without_gradient_are_left_out(tmp_path, dtype):
    seed_all()
    model = mlp()
    model.codes = nn.Parameter(torch.zeros(3).to(dtype), requires_grad=False)
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(2):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status_counts() == {"measured": 2}
    assert "codes" not in trace.parameters


def test_an_empty_parameter_is_measured_as_nothing(tmp_path):
    seed_all()
    model = mlp()
    model.nothing = nn.Parameter(torch.zeros(0, 4))
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(2):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y) + model.nothing.sum())
            optimizer.step()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status_counts() == {"measured": 2}
    assert (trace.read("grad_diff")[..., trace.parameters.index("nothing")] == 0).all()


def test_a_compiled_step_gives_the_same_trace(tmp_path):
    def run(path, compiled):
        torch._dynamo.reset()
        seed_all()
        # Compiled, Adam's step is rounded differently: in float64 that is not seen.
        model = mlp().double()
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01, dtype=torch.float64))
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        with lsmooth.Recorder(model, optimizer, path, every=2) as recorder:
            for x, y in batches(4):
                optimizer.zero_grad()
                recorder.backward(lambda x=x, y=y: classify(model, x.double(), y))
                step()
        return lsmooth.Trace(path)

    plain, compiled = run(tmp_path / "plain.h5", False), run(tmp_path / "compiled.h5", True)
    assert compiled.status_counts() == {"measured": 2}
    np.testing.assert_allclose(compiled.read("grad_diff"), plain.read("grad_diff"), rtol=1e-5)


@pytest.mark.usefixtures("device")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@pytest.mark.parametrize("watched", [False, True])
def test_a_training_step_that_is_compiled_as_a_whole_is_measured(watched, tmp_path):
    def run(path):
        seed_all()
        model = mlp(nn.BatchNorm1d(8))
        optimizer = sgd(model)
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        compute = recorder.watch(classify) if recorder and watched else classify

        @torch.compile(backend="eager")
        def train(x, y):
            optimizer.zero_grad()
            if recorder is None or watched:
                compute(model, x, y).backward()
            else:
                recorder.backward(lambda: classify(model, x, y))
            optimizer.step()

        for x, y in batches(4):
            train(x, y)
        if recorder is not None:
            recorder.close()
        return everything(model, optimizer)

    assert differences(run(None), run(tmp_path / "run.h5")) == []
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 4}


def test_a_loss_that_draws_another_batch_each_time_is_flagged_at_every_step(tmp_path):
    if torch.get_default_device().type != "cpu":
        pytest.skip("nothing waits for the verdict there: the writer's thread brings it a few steps later")
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    drawn = itertools.cycle(batches(7))
    with (
        warnings.catch_warnings(record=True) as told,
        lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder,
    ):
        warnings.simplefilter("always")
        for _ in range(5):
            optimizer.zero_grad()
            recorder.backward(lambda: classify(model, *next(drawn)))
            optimizer.step()
    assert [str(warning.message)[:60] for warning in told] == [
        "Evaluating the loss again has changed an itertools.cycle, wh",
        "At step 0 the gradient at x_t, evaluated a second time, diff",
    ]
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"not_repeated": 5}


def traced():
    return torch.jit.trace(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), torch.randn(4, 6))


def with_sparse_weights():
    class Diffusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.edges = nn.Parameter(torch.eye(6).to_sparse(), requires_grad=False)
            self.inside = mlp()

        def forward(self, x):
            return self.inside(torch.sparse.mm(self.edges, x.T).T)

    return Diffusing()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("make", [traced, with_sparse_weights])
def test_a_model_of_another_make_is_measured_and_left_as_it_was(tmp_path, make):
    def run(path):
        seed_all()
        model = make()
        optimizer = sgd(model)
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        for x, y in batches(4):
            optimizer.zero_grad()
            recorder.backward(lambda: classify(model, x, y)) if recorder else classify(model, x, y).backward()  # noqa: B023
            optimizer.step()
        if recorder:
            recorder.close()
        return [t.to_dense().tolist() for t in (*model.parameters(), *model.buffers())]

    assert run(None) == run(tmp_path / "run.h5")
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 4}


class RateTwice(NoRate):
    def __init__(self, parameters):
        torch.optim.Optimizer.__init__(self, parameters, {"damping": 1.0, "lr": (0.1, 0.2), "weight_decay": "cosine"})


def test_a_group_that_says_its_numbers_otherwise_leaves_a_trace_that_can_be_read(tmp_path):
    trace = unchanged(tmp_path, three_steps, None, RateTwice)
    assert trace.status_counts() == {"measured": 3}
    assert np.isnan(trace.lr).all()
    assert trace.metadata["optimizer_groups"] == [{"damping": 1.0, "lr": None, "weight_decay": None}]


class InTwoSteps(torch.optim.Optimizer):
    """Goes uphill, and from there on, as sharpness-aware minimization does; other optimizers step inside of it."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})
        self.inside = torch.optim.SGD(self.param_groups, lr=0.1)
        self.before = []

    @torch.no_grad()
    def climb(self):
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.before = [p.data.clone() for p in parameters]
        for p in parameters:
            p.add_(p.grad, alpha=0.05)
        self.zero_grad()

    def descend(self):
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p, before in zip(parameters, self.before, strict=True):
            p.data = before
        self.inside.step()
        self.zero_grad()


@pytest.mark.parametrize("given", ["outer", "inside", "inside, with a probe"])
def test_an_optimizer_of_two_steps_leads_to_the_one_inside_and_a_probe(given, tmp_path):
    model = mlp()
    optimizer = InTwoSteps(model.parameters())
    x, y = batches(1, seed=9)[0]
    probe = {"probe": lambda: classify(model, x, y)} if "probe" in given else {}
    recorder = lsmooth.Recorder(
        model, optimizer if given == "outer" else optimizer.inside, tmp_path / "run.h5", every=1, **probe
    )
    with recorder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for inputs, targets in batches(6):
            recorder.backward(lambda: classify(model, inputs, targets))  # noqa: B023
            optimizer.climb()
            recorder.backward(lambda: classify(model, inputs, targets))  # noqa: B023
            optimizer.descend()
    counts = lsmooth.Trace(tmp_path / "run.h5").status_counts()
    if probe:
        assert counts == {"measured": 6}
        assert caught == []
        return
    assert "measured" not in counts
    (said,) = [str(warning.message) for warning in caught]
    assert "(SAM), give" in said
    assert "probe=, a loss that is evaluated where" in said
