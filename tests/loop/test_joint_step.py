"""Several optimizers that take each step together: what a step is, and its numbers against a slow reference."""

import io
import warnings

import numpy as np
import pytest
import torch
from loops import (
    Bare,
    Function,
    Recorded,
    Reference,
    batches,
    classify,
    differences,
    everything,
    mlp,
    seed_all,
)
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.trace.layout import Status

pytestmark = pytest.mark.usefixtures("device")

# PyTorch has Muon from 2.9 on.
MUON = getattr(torch.optim, "Muon", torch.optim.SGD)


class Pair:
    """Two optimizers held together by an object that is no `torch.optim.Optimizer`."""

    def __init__(self, *optimizers):
        self.optimizers = list(optimizers)

    @property
    def param_groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def state_dict(self):
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {
            "state": {(i, key): value for i, state in enumerate(states) for key, value in state["state"].items()},
            "param_groups": [state["param_groups"] for state in states],
        }

    def load_state_dict(self, state):
        for i, optimizer in enumerate(self.optimizers):
            mine = {key: value for (j, key), value in state["state"].items() if j == i}
            optimizer.load_state_dict({"state": mine, "param_groups": state["param_groups"][i]})

    def zero_grad(self, **arguments):
        for optimizer in self.optimizers:
            optimizer.zero_grad(**arguments)


def muon_and_adamw(model, lr=0.05):
    """Muon for matrices, AdamW for all else."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return Pair(MUON(matrices, lr=lr), torch.optim.AdamW(others, lr=0.02))


def loop(watch, net=mlp, *, step=None, after_backward=None, between=None, parts=1, steps=6, zero=True, scaler=None):
    """Train; `step(i, muon, adamw)` says who steps at iteration i, and in which order."""
    model = net()
    pair = muon_and_adamw(model)
    muon, adamw = pair.optimizers
    watch.attach(model, pair)
    for i, (x, y) in enumerate(batches(steps)):
        if zero:
            pair.zero_grad(set_to_none=zero != "zeros")
        for j in range(parts):
            rows = slice(j * 8 // parts, (j + 1) * 8 // parts)
            watch.backward(lambda x=x[rows], y=y[rows]: classify(model, x, y) / parts, *([scaler] if scaler else []))
        if after_backward is not None:
            after_backward(model)
        watch.before_step()
        for k, optimizer in enumerate(step(i, muon, adamw) if step else (muon, adamw)):
            if k and between is not None:
                between(model, x, y)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
            if zero is False:
                optimizer.zero_grad()
        if scaler is not None:
            scaler.update()
        watch.after_step()
    watch.end()
    return model, pair


def noisy():
    return mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))


def evaluate(model, x, y):
    classify(model, x, y)
    with torch.no_grad():
        classify(model, x, y)


def every_second(i, muon, adamw):
    return (muon, adamw) if i % 2 else (muon,)


def alternating_order(i, muon, adamw):
    return (adamw, muon) if i % 2 else (muon, adamw)


def in_turn(i, muon, adamw):
    return (adamw,) if i % 2 else (muon,)


def first_every_third(i, muon, adamw):
    return (muon,) if i % 3 else (adamw, muon)


VARIANTS = {
    "plain": {},
    "noisy": {"net": noisy},
    "any order": {"step": alternating_order},
    "accumulated and clipped": {
        "net": noisy, "parts": 2,
        "after_backward": lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    },
    "one every second time": {"step": every_second, "net": noisy},
    "one every second time, zeros kept": {"step": every_second, "zero": "zeros"},
    "one every second time, its gradient accumulating": {"step": every_second, "zero": False},
    "the same, in parts": {"step": every_second, "zero": False, "parts": 2, "net": noisy},
    "one every third time, first": {"step": first_every_third},
    "in turn": {"step": in_turn},
    "evaluated in between": {"net": noisy, "between": evaluate},
    "evaluated in between, one every second time": {"net": noisy, "step": every_second, "between": evaluate},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_run_is_the_same_and_the_numbers_are_those_of_a_slow_reference(variant, tmp_path):
    results, reference = [], Reference()
    for watch in (Bare(), Recorded(tmp_path / "run.h5"), reference):
        seed_all()
        results.append(everything(*loop(watch, **VARIANTS[variant])))
    assert differences(results[0], results[1]) == []
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == list(range(6))
        assert trace.status_counts() == {"measured": 6}
        assert trace.metadata["optimizer"] == f"{MUON.__name__} + AdamW"
        assert trace.lr.tolist() == [[pytest.approx(0.05), pytest.approx(0.02)]] * 6
        assert trace.parameters == reference.names
        for name in ("loss", "loss_along", "loss_next", "grad_norm", "step_norm", "grad_diff", "slope"):
            expected = np.array([row[name] for row in reference.rows])
            np.testing.assert_allclose(trace.read(name), expected, rtol=3e-4, atol=3e-6, err_msg=name)


def test_on_a_quadratic_the_joint_displacement_has_its_curvature(tmp_path):
    seed_all()
    factor = torch.randn(14, 14, dtype=torch.float64)
    hessian = factor @ factor.T

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
            self.vector = nn.Parameter(torch.randn(2, dtype=torch.float64))

        def flat(self):
            return torch.cat([self.matrix.flatten(), self.vector])

        def forward(self):
            return self.flat() @ hessian @ self.flat() / 2

    model = Quadratic()
    pair = muon_and_adamw(model)
    expected = []
    with lsmooth.Recorder(model, pair.optimizers, tmp_path / "run.h5") as recorder:
        for i in range(6):
            pair.zero_grad()
            recorder.backward(model)
            x = model.flat().detach().clone()
            for optimizer in pair.optimizers[: 1 if i % 3 == 1 else 2]:
                optimizer.step()
            d = model.flat().detach() - x
            assert (d[12:] == 0).all() == (i % 3 == 1)
            change, slope = hessian @ d, (hessian @ x) @ d
            parts = [(change[s].norm() / d[s].norm()).item() for s in (slice(0, 12), slice(12, 14))]
            expected.append(((change.norm() / d.norm()).item(), (-change @ d / slope).item(), parts))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 6}
        np.testing.assert_allclose(trace.cloud().smoothness[:, 0], [row[0] for row in expected], rtol=1e-9)
        np.testing.assert_allclose(trace.curvature()["edge_ratio"], [row[1] for row in expected], rtol=1e-9)
        cloud = trace.cloud("parameter")
        np.testing.assert_allclose(
            cloud.smoothness[cloud.usable], np.array([row[2] for row in expected])[cloud.usable], rtol=1e-9
        )
        # The vector did not move at two steps: it has no estimate of its own there.
        assert (~cloud.usable).sum() == 2


@pytest.mark.parametrize("how", ["watch", "forward"])
@pytest.mark.parametrize("step", [None, every_second, first_every_third, in_turn])
@pytest.mark.parametrize("extra", [False, True])
def test_watched_losses_give_the_same_trace(how, step, extra, tmp_path):
    """With `extra`, the loss is computed once more, gradients and all, between the optimizers' steps."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = noisy()

        def forward(self, x, y):
            return classify(self.net, x, y)

    def run(path, how):
        seed_all()
        model = Classifier()
        pair = muon_and_adamw(model)
        criterion = model
        with lsmooth.Recorder(model, pair.optimizers, path) as recorder:
            if how == "watch":
                criterion = recorder.watch(lambda x, y: model(x, y))
            elif how == "forward":
                recorder.watch_forward()
            for i, (x, y) in enumerate(batches(6)):
                if how == "backward":
                    pair.zero_grad()
                    recorder.backward(lambda x=x, y=y: model(x, y))
                else:
                    loss = criterion(x, y)
                    pair.zero_grad()
                    loss.backward()
                chosen = step(i, *pair.optimizers) if step else pair.optimizers
                for k, optimizer in enumerate(chosen):
                    if k and extra:
                        criterion(x, y)
                    optimizer.step()
            assert recorder.step == 6
            assert recorder.failure is None
        with lsmooth.Trace(path) as trace:
            assert trace.status_counts() == {"measured": 6}
            return everything(model, pair), {name: trace.read(name) for name in ("grad_diff", "step_norm", "grad_norm")}

    state, expected = run(tmp_path / "a.h5", "backward")
    other, found = run(tmp_path / "b.h5", how)
    assert differences(state, other) == []
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_backward_passes_that_the_recorder_does_not_see_end_a_step_too(tmp_path, model):
    """Unmeasured steps may use plain backward; AdamW, first in turn, must not be joined to the step before."""

    def run(path, plain):
        seed_all()
        model = mlp()
        pair = muon_and_adamw(model)
        muon, adamw = pair.optimizers
        with lsmooth.Recorder(model, [muon, adamw], path, every=2) as recorder:
            for i, (x, y) in enumerate(batches(6)):
                pair.zero_grad()
                if plain and i % 2:
                    classify(model, x, y).backward()
                else:
                    recorder.backward(lambda x=x, y=y: classify(model, x, y))
                for optimizer in (adamw, muon) if i % 2 else (muon,):
                    optimizer.step()
            assert recorder.step == 6
        with lsmooth.Trace(path) as trace:
            assert trace.steps.tolist() == [0, 2, 4]
            assert trace.status_counts() == {"measured": 3}
            return trace.read("grad_diff"), trace.read("step_norm")

    for one, other in zip(run(tmp_path / "a.h5", False), run(tmp_path / "b.h5", True), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("how", ["before", "inside", "each"])
def test_closures_given_to_the_steps(how, tmp_path):
    """The first step's closure computes the gradient; or each step's does, and then each is a step of its own."""

    def run(path, how):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        pair = muon_and_adamw(model)
        muon, adamw = pair.optimizers
        with lsmooth.Recorder(model, [muon, adamw], path) as recorder:
            for x, y in batches(4):

                def compute(x=x, y=y):
                    pair.zero_grad()
                    return recorder.backward(lambda: classify(model, x, y))

                if how in ("inside", "each"):
                    muon.step(torch.enable_grad()(compute))
                    adamw.step(torch.enable_grad()(compute) if how == "each" else None)
                else:
                    compute()
                    muon.step(closure=(lambda: None) if how == "before" else None)
                    adamw.step(closure=(lambda: None) if how == "before" else None)
            steps = recorder.step
        with lsmooth.Trace(path) as trace:
            assert trace.status_counts() == {"measured": steps}
            return everything(model, pair), trace.read("grad_diff"), trace.read("step_norm")

    state, changes, moved = run(tmp_path / "found.h5", how)
    if how == "each":
        assert len(changes) == 8
        still = (moved == 0).all(axis=0)
        assert not still.any()
        assert ((moved[::2] == 0) == (moved[1::2] > 0)).all()
        return
    expected, expected_changes, _ = run(tmp_path / "plain.h5", "plain")
    assert differences(expected, state) == []
    np.testing.assert_array_equal(changes, expected_changes)


def test_a_scaler_may_skip_all_of_them_or_one(tmp_path):
    """At step 2 the gradient of AdamW's parameters alone is infinite, at step 4 that of all."""

    seed_all()
    model = mlp()
    pair = muon_and_adamw(model)
    scaler = torch.amp.GradScaler(model[0].weight.device.type, init_scale=1024.0)
    muon, adamw = pair.optimizers
    with lsmooth.Recorder(model, [muon, adamw], tmp_path / "run.h5") as recorder:
        for i, (x, y) in enumerate(batches(6)):
            pair.zero_grad()
            x = x * (torch.inf if i == 4 else 1)
            recorder.backward(lambda x=x, y=y: classify(model, x, y), scaler=scaler)
            if i == 2:
                model[0].bias.grad.fill_(torch.inf)
            before = [p.detach().clone() for p in model.parameters()]
            for optimizer in pair.optimizers:
                scaler.step(optimizer)
            scaler.update()
            moved = [not torch.equal(p, then) for p, then in zip(model.parameters(), before, strict=True)]
            assert moved == ([False] * 4 if i == 4 else [True, i != 2] * 2)
        assert recorder.step == 6
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == list(range(6))
        assert [bool(s & Status.MEASURED) for s in trace.status.tolist()] == [True, True, True, True, False, True]
        assert trace.status[4] & Status.NO_DISPLACEMENT
        assert (trace.read("step_norm")[2] > 0).tolist() == [True, False] * 2


@pytest.mark.parametrize("watched", [False, True])
def test_a_step_that_one_sat_out_comes_before_one_that_is_skipped(watched, tmp_path, model):
    pair = muon_and_adamw(model)
    with lsmooth.Recorder(model, pair.optimizers, tmp_path / "run.h5") as recorder:
        compute = recorder.watch(lambda x, y: classify(model, x, y)) if watched else None
        for i, (x, y) in enumerate(batches(5)):
            pair.zero_grad()
            if watched:
                compute(x, y).backward()
            else:
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
            for optimizer in pair.optimizers[:1] if i != 2 else ():
                optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == list(range(5))
        assert trace.status.tolist() == [
            Status.NO_DISPLACEMENT if i == 2 else Status.MEASURED for i in range(5)
        ]  # fmt: skip


def test_a_step_is_measured_before_the_next_loss_is_computed(tmp_path, model):
    """Otherwise gradients and graphs of more than one step would be held."""
    pair = muon_and_adamw(model)
    # Evaluations are put back where they change lists, and not where they write to a file.
    calls = io.StringIO()
    with lsmooth.Recorder(model, pair.optimizers, tmp_path / "run.h5") as recorder:
        for i, (x, y) in enumerate(batches(3)):
            pair.zero_grad()
            recorder.backward(lambda x=x, y=y, i=i: (calls.write(f"{i}"), classify(model, x, y))[::-1])
            pair.optimizers[0].step()
    assert calls.getvalue() == 8 * "0" + 7 * "1" + 7 * "2"


def test_one_that_steps_twice_on_a_gradient_takes_two_steps(tmp_path, model):
    pair = muon_and_adamw(model)
    with lsmooth.Recorder(model, pair.optimizers, tmp_path / "run.h5", every=2) as recorder:
        for i, (x, y) in enumerate(batches(3)):
            pair.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            pair.optimizers[0].step()
            assert recorder.step == 2 * i + 1
            pair.optimizers[0].step()
            pair.optimizers[1].step()
            assert recorder.step == 2 * i + 2
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0, 2, 4]
        assert trace.status_counts() == {"measured": 3}
        # At the measured steps, Muon was alone.
        assert ((trace.read("step_norm") > 0) == [True, False] * 2).all()


@pytest.mark.parametrize("how", ["backward", "watch"])
def test_losses_of_their_own_make_steps_of_their_own(how, tmp_path):
    """Two networks in turn, each with a loss and an optimizer: a step of the recorder is a step of one of them."""
    seed_all()
    nets = nn.ModuleList([mlp(), mlp()])
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    with lsmooth.Recorder(nets, optimizers, tmp_path / "run.h5") as recorder:
        compute = recorder.watch(classify) if how == "watch" else None
        for x, y in batches(3):
            for net, optimizer in zip(nets, optimizers, strict=True):
                nets.zero_grad()
                if how == "watch":
                    compute(net, x, y).backward()
                else:
                    recorder.backward(lambda net=net, x=x, y=y: classify(net, x, y))
                optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 6}
        moved = trace.read("step_norm") > 0
        assert (moved[::2] == [True] * 4 + [False] * 4).all()
        assert (moved[1::2] == [False] * 4 + [True] * 4).all()


class Both(torch.optim.Optimizer):
    """An optimizer that holds two, and tells of its steps itself."""

    def __init__(self, *optimizers):
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


@pytest.mark.parametrize("held", [Both, Pair])
def test_an_optimizer_that_holds_both_is_measured_as_the_two_are(held, tmp_path):
    def run(path, make):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        muon, adamw = muon_and_adamw(model).optimizers
        given = make(muon, adamw)
        with lsmooth.Recorder(model, given, path) as recorder:
            for x, y in batches(4):
                for optimizer in (muon, adamw):
                    optimizer.zero_grad()
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
                for optimizer in [given] if make is Both else (muon, adamw):
                    optimizer.step()
        with lsmooth.Trace(path) as trace:
            assert trace.status_counts() == {"measured": 4}
            return trace.read("grad_diff"), trace.lr

    for one, other in zip(
        run(tmp_path / "a.h5", lambda *optimizers: list(optimizers)), run(tmp_path / "b.h5", held), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_between_two_steps_has_the_one_that_an_optimizer_sat_out(tmp_path):
    """The run stopped after five steps, at the last of which AdamW was absent, and was resumed, has the same trace."""

    def train(recorder, model, pair, steps):
        for i, (x, y) in enumerate(batches(8)):
            if i in steps:
                pair.zero_grad()
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
                for optimizer in every_second(i, *pair.optimizers):
                    optimizer.step()

    seed_all()
    model = mlp()
    pair = muon_and_adamw(model)
    with lsmooth.Recorder(model, pair.optimizers, tmp_path / "whole.h5") as recorder:
        train(recorder, model, pair, range(8))

    seed_all()
    model = mlp()
    pair = muon_and_adamw(model)
    recorder = lsmooth.Recorder(model, pair.optimizers, tmp_path / "parts.h5")
    train(recorder, model, pair, range(5))
    state = recorder.state_dict()
    assert (state["step"], state["rows"]) == (5, 5)
    kept = {name: value.clone() for name, value in model.state_dict().items()}, pair.state_dict()
    train(recorder, model, pair, range(5, 7))
    recorder.close()

    seed_all()
    model = mlp()
    pair = muon_and_adamw(model)
    model.load_state_dict(kept[0])
    pair.load_state_dict(kept[1])
    with lsmooth.Recorder(model, pair.optimizers, tmp_path / "parts.h5", mode="a") as recorder:
        recorder.load_state_dict(state)
        train(recorder, model, pair, range(5, 8))
    with lsmooth.Trace(tmp_path / "whole.h5") as whole, lsmooth.Trace(tmp_path / "parts.h5") as parts:
        assert parts.steps.tolist() == list(range(8))
        assert parts.status_counts() == {"measured": 8}
        for name in ("loss", "step_norm", "lr"):
            np.testing.assert_allclose(parts.read(name)[:5], whole.read(name)[:5])


@pytest.mark.parametrize("end", ["close", "with", "error", "forgotten"])
def test_the_last_step_is_measured_when_the_recorder_is_closed(end, tmp_path, model):
    """Unless an exception closes it, or nobody does: then nothing is evaluated any more."""
    pair = muon_and_adamw(model)
    recorder = lsmooth.Recorder(model, pair.optimizers, tmp_path / "run.h5")
    (x, y), *_ = batches(1)

    def run():
        recorder.backward(lambda: classify(model, x, y))
        pair.optimizers[0].step()

    if end == "with":
        with recorder:
            run()
    elif end == "error":
        run()
        recorder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    else:
        run()
        if end == "forgotten":
            recorder._close()
        recorder.close()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == ([0] if end in ("close", "with") else [])
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in pair.optimizers)


@pytest.mark.parametrize("partial", [False, True])
def test_what_else_moves_parameters_meanwhile_is_flagged(partial, tmp_path, model):
    pair = muon_and_adamw(model)
    muon, adamw = pair.optimizers
    with lsmooth.Recorder(model, [muon, adamw], tmp_path / "run.h5") as recorder:
        for i, (x, y) in enumerate(batches(3)):
            pair.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            muon.step()
            if i == 1:
                with torch.no_grad():
                    model[0].weight.mul_(0.5)
            if not partial or i == 2:
                adamw.step()
        moved = model[0].weight.detach().clone()
    assert torch.equal(model[0].weight, moved)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status.tolist() == [Status.MEASURED, Status.MOVED, Status.MEASURED]


def test_an_optimizer_whose_steps_are_not_seen_is_named(tmp_path, model):
    pair = muon_and_adamw(model)
    muon, adamw = pair.optimizers
    other = torch.optim.AdamW(adamw.param_groups[0]["params"], lr=0.1)

    def train():
        with lsmooth.Recorder(model, [muon, adamw], tmp_path / "run.h5") as recorder:
            for x, y in batches(6):
                pair.zero_grad()
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
                muon.step()
                other.step()
            assert "without a call of its step() being seen" in recorder.failure

    with pytest.warns(UserWarning, match=r"AdamW changed at 3 steps in a row without a call of its step\(\)"):
        train()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"moved": 6}


def test_one_that_steps_rarely_is_no_fault(tmp_path, model):
    pair = muon_and_adamw(model)
    with warnings.catch_warnings(), lsmooth.Recorder(model, pair.optimizers, tmp_path / "run.h5") as recorder:
        warnings.simplefilter("error")
        for i, (x, y) in enumerate(batches(10)):
            pair.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            for optimizer in pair.optimizers[: 2 if i == 8 else 1]:
                optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 10}


def test_another_recorder_on_one_of_them_does_not_end_the_step(tmp_path):
    def run(path, alone):
        seed_all()
        model = mlp()
        pair = muon_and_adamw(model)
        second = None if alone else lsmooth.Recorder(model, pair.optimizers[0], tmp_path / "second.h5")
        with lsmooth.Recorder(model, pair.optimizers, path) as recorder:
            for x, y in batches(4):
                pair.zero_grad()
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
                for optimizer in pair.optimizers:
                    optimizer.step()
        if second is not None:
            second.close()
            assert lsmooth.Trace(tmp_path / "second.h5").status_counts() == {"measured": 4}
        with lsmooth.Trace(path) as trace:
            return trace.status.tolist(), trace.read("step_norm"), trace.read("grad_diff")

    alone, beside = run(tmp_path / "alone.h5", True), run(tmp_path / "beside.h5", False)
    assert alone[0] == [Status.MEASURED] * 4
    np.testing.assert_array_equal(beside[1], alone[1])


def test_networks_with_an_optimizer_and_a_recorder_each_are_independent(tmp_path):
    """A generator and its critic: each recorder's trace is the one that it writes without the other."""

    def run(*recorded):
        seed_all()
        generator, critic = nn.Linear(3, 6), mlp()
        both = nn.ModuleDict({"generator": generator, "critic": critic})
        optimizers = {name: torch.optim.Adam(both[name].parameters(), lr=0.02) for name in both}
        paths = {name: tmp_path / f"{name}.{len(recorded)}.h5" for name in recorded}
        recorders = {name: lsmooth.Recorder(both[name], optimizers[name], paths[name]) for name in recorded}

        def backward(name, closure):
            return recorders[name].backward(closure) if name in recorders else closure().backward()

        for x, _ in batches(4):
            noise = torch.randn(8, 3)
            optimizers["critic"].zero_grad()
            backward("critic", lambda x=x, z=noise: critic(generator(z).detach()).mean() - critic(x).square().mean())
            optimizers["critic"].step()
            optimizers["generator"].zero_grad()
            backward("generator", lambda z=noise: -critic(generator(z)).mean())
            optimizers["generator"].step()
        for recorder in recorders.values():
            recorder.close()
        return everything(both, Pair(*optimizers.values())), paths

    state, _ = run()
    both, paths = run("generator", "critic")
    assert differences(state, both) == []
    for name, path in paths.items():
        _, alone = run(name)
        with lsmooth.Trace(path) as one, lsmooth.Trace(alone[name]) as other:
            assert one.status_counts() == {"measured": 4}
            for dataset in ("loss", "grad_diff", "step_norm", "coordinate/grad_along"):
                np.testing.assert_array_equal(one.read(dataset), other.read(dataset))


@pytest.mark.parametrize("twice", ["shared", "same"])
def test_a_parameter_that_two_of_them_step_is_refused(twice, tmp_path, model):
    one = torch.optim.SGD(model.parameters(), lr=0.1)
    other = one if twice == "same" else torch.optim.AdamW(model[0].parameters())
    with pytest.raises(
        InvalidArgumentError, match=r"^0\.weight is stepped by two of the recorder's optimizers"
    ) as found:
        lsmooth.Recorder(model, [one, other], tmp_path / "run.h5")
    assert str(found.value).count(".") == 2
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize("given", [[], (), [Pair()]])
def test_no_optimizer_is_refused(given, tmp_path, model):
    with pytest.raises(InvalidArgumentError, match="given no optimizer"):
        lsmooth.Recorder(model, given, tmp_path / "run.h5")


def test_lbfgs_among_them_is_refused(tmp_path, model):
    pair = [torch.optim.LBFGS(model[0].parameters()), torch.optim.SGD(model[3].parameters(), lr=0.1)]
    with pytest.raises(InvalidArgumentError, match="LBFGS evaluates the loss several times"):
        lsmooth.Recorder(model, pair, tmp_path / "run.h5")


def test_probes_are_measured_along_the_joint_displacement(tmp_path):
    seed_all()
    factor = torch.randn(6, 6, dtype=torch.float64)
    hessian = factor @ factor.T
    model = Function(torch.randn(6, dtype=torch.float64), lambda x: x @ hessian @ x / 2)
    model.extra = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    pair = muon_and_adamw(model)
    values = []
    with lsmooth.Recorder(model, pair.optimizers, tmp_path / "run.h5", probe=lambda: model() + model.extra.sum()):
        for i in range(4):
            pair.zero_grad()
            (model() + model.extra.square().sum()).backward()
            before = model.x.detach().clone(), model.extra.detach().clone()
            for optimizer in pair.optimizers[: 2 if i % 2 else 1][::-1]:
                optimizer.step()
            d, e = model.x.detach() - before[0], model.extra.detach() - before[1]
            values.append(((hessian @ d).norm() / torch.hypot(d.norm(), e.norm())).item())
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 4}
        np.testing.assert_allclose(trace.cloud().smoothness[:, 0], values, rtol=1e-9, atol=1e-12)
