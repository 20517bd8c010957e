"""The recorder itself: which steps it measures, what it flags and refuses, and that it never waits for the device."""

import contextlib
import itertools
import os
import random
import signal
import weakref
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from loops import Bare, Recorded, batches, classify, device_type, differences, everything, mlp, seed_all, sgd, simple
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lsmooth
from lsmooth.errors import InvalidArgumentError, RecorderError, TraceError
from lsmooth.loop.gradient import StepGradient
from lsmooth.measure.row import Row
from lsmooth.trace.layout import Status

pytestmark = pytest.mark.usefixtures("device")


def train(recorder, model, optimizer, steps, between=None):
    for i, (x, y) in enumerate(batches(steps)):
        optimizer.zero_grad()
        recorder.backward(lambda x=x, y=y: classify(model, x, y))
        if between is not None:
            between(i)
        optimizer.step()


@pytest.fixture
def model():
    seed_all()
    return mlp(nn.Dropout(0.2))


# --- closed forms ---


class Function(nn.Module):
    def __init__(self, start, f):
        super().__init__()
        self.x = nn.Parameter(start.clone())
        self.f = f

    def forward(self):
        return self.f(self.x)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=1e-2),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.RMSprop(p, lr=1e-2),
        lambda p: torch.optim.Adagrad(p, lr=1e-2),
    ],
)
def test_quadratic_global_estimate_is_the_curvature_along_the_step(make, tmp_path):
    seed_all()
    factor = torch.randn(30, 30, dtype=torch.float64)
    hessian = factor @ factor.T
    model = Function(torch.randn(30, dtype=torch.float64), lambda x: x @ hessian @ x / 2)
    optimizer = make(model.parameters())
    points = [model.x.detach().clone()]
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(40):
            optimizer.zero_grad()
            recorder.backward(model)
            optimizer.step()
            points.append(model.x.detach().clone())
    cloud = lsmooth.Trace(tmp_path / "run.h5").cloud("global")
    steps = [after - before for before, after in itertools.pairwise(points)]
    expected = [((hessian @ d).norm() / d.norm()).item() for d in steps]
    np.testing.assert_allclose(cloud.smoothness[:, 0], expected, rtol=1e-9)
    np.testing.assert_allclose(cloud.grad_norm[:, 0], [(hessian @ x).norm().item() for x in points[:-1]], rtol=1e-12)


def test_each_followed_coordinate_of_a_sum_of_cosh_has_its_closed_form(tmp_path):
    seed_all()
    a = torch.linspace(0.5, 2, 12, dtype=torch.float64)
    model = Function(torch.randn(12, dtype=torch.float64), lambda x: torch.cosh(a * x).sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    points = [model.x.detach().clone()]
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", coordinates=5, seed=3) as recorder:
        for _ in range(15):
            optimizer.zero_grad()
            recorder.backward(model)
            optimizer.step()
            points.append(model.x.detach().clone())
    trace = lsmooth.Trace(tmp_path / "run.h5")
    index = trace.coordinates["index"].to_numpy()
    assert len(set(index)) == 5
    index = index.tolist()
    start, stop = torch.stack(points[:-1])[:, index], torch.stack(points[1:])[:, index]
    gammas = torch.tensor(trace.gammas)[:, None, None]

    def gradient(x):
        return a[index] * torch.sinh(a[index] * x)

    along = gradient(start + gammas * (stop - start))
    ratios = ((along - gradient(start)) / (gammas * (stop - start))).abs()
    best, where = ratios.max(dim=0)
    smaller = torch.minimum(gradient(start).abs(), along.gather(0, where[None])[0].abs())
    cloud = trace.cloud("coordinate")
    np.testing.assert_allclose(cloud.smoothness, best.cpu(), rtol=1e-9)
    np.testing.assert_allclose(cloud.grad_norm, smaller.cpu(), rtol=1e-9)

    end = trace.cloud("coordinate", endpoint=True)
    expected = ((gradient(stop) - gradient(start)) / (stop - start)).abs()
    np.testing.assert_allclose(end.smoothness, expected.cpu(), rtol=1e-9)
    expected = torch.minimum(gradient(stop).abs(), gradient(start).abs())
    np.testing.assert_allclose(end.grad_norm, expected.cpu(), rtol=1e-9)


def test_layer_and_global_displacement(tmp_path, model):
    with lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5") as recorder:
        train(recorder, model, recorder._subject.optimizer, 3)
    trace = lsmooth.Trace(tmp_path / "run.h5")
    diff, moved = trace.read("grad_diff").astype(float), trace.read("step_norm").astype(float)
    own = trace.cloud("module").smoothness
    whole = trace.cloud("module", displacement="global").smoothness
    first = np.hypot(diff[..., 0], diff[..., 1])
    np.testing.assert_allclose(own[:, 0], (first / trace.gammas / np.hypot(moved[:, 0], moved[:, 1])[:, None]).max(1))
    total = np.sqrt((moved**2).sum(axis=1))
    np.testing.assert_allclose(whole[:, 0], (first / trace.gammas / total[:, None]).max(1))


# --- mixed precision with a scaler ---


def scaled_loop(poisoned=()):
    def loop(watch):
        model = mlp()
        optimizer = sgd(model, 0.3)
        scaler = torch.amp.GradScaler(device_type(), init_scale=1024.0, growth_interval=2)
        watch.attach(model, optimizer)
        for i, (x, y) in enumerate(batches(7)):
            optimizer.zero_grad()
            factor = float("inf") if i in poisoned else 1.0
            watch.backward(lambda x=x, y=y, factor=factor: classify(model, x, y) * factor, scaler)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        watch.end()
        return model, optimizer

    return loop


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_the_slope_is_that_of_the_unscaled_gradient(scale, tmp_path):
    seed_all()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device_type(), init_scale=scale or 1.0, enabled=scale is not None)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(3):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y), scaler)
            scaler.step(optimizer)
            scaler.update()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    # Every step goes straight down: d = -lr grad f.
    np.testing.assert_allclose(trace.read("slope"), -0.1 * trace.read("total_grad_norm") ** 2, rtol=1e-4)


@pytest.mark.parametrize("poisoned", [(), (0,), (2, 3), (6,)])
def test_gradient_scaler_changes_nothing_and_its_skipped_steps_are_flagged(poisoned, tmp_path):
    results = []
    for watch in (Bare(), Recorded(tmp_path / "run.h5")):
        seed_all()
        results.append(everything(*scaled_loop(poisoned)(watch)))
    assert differences(*results) == []
    trace = lsmooth.Trace(tmp_path / "run.h5")
    # An attempt at the very end of a run that was skipped is known to be skipped by nothing that follows it.
    expected = [i for i in range(7) if not (i == 6 and 6 in poisoned)]
    assert trace.steps.tolist() == expected
    skipped = [bool(status & Status.NO_DISPLACEMENT) for status in trace.status]
    assert skipped == [i in poisoned for i in expected]
    assert all(status == Status.MEASURED for status, i in zip(trace.status, expected, strict=True) if i not in poisoned)


def test_gradients_behind_a_scaler_are_those_of_the_unscaled_loss(tmp_path):
    seed_all()
    scaled_loop()(Recorded(tmp_path / "scaled.h5"))
    seed_all()

    def unscaled(watch):
        model = mlp()
        return simple(
            model,
            sgd(model, 0.3),
            watch,
            steps=7,
            between=lambda i: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        )

    unscaled(Recorded(tmp_path / "plain.h5"))
    scaled, plain = lsmooth.Trace(tmp_path / "scaled.h5"), lsmooth.Trace(tmp_path / "plain.h5")
    for name in ("grad_norm", "grad_diff", "coordinate/grad", "coordinate/grad_along", "coordinate/grad_next"):
        np.testing.assert_allclose(scaled.read(name), plain.read(name), rtol=1e-4, atol=1e-7)


# --- which steps ---


@pytest.mark.parametrize(
    ("every", "expected"), [(1, list(range(7))), (3, [0, 3, 6]), (lambda step: step in (1, 2, 5), [1, 2, 5])]
)
def test_every_chooses_steps(every, expected, tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=every) as recorder:
        train(recorder, model, optimizer, 7)
    assert lsmooth.Trace(tmp_path / "run.h5").steps.tolist() == expected


def test_every_asks_once_a_step(tmp_path, model):
    asked = []
    optimizer = sgd(model)
    with lsmooth.Recorder(
        model, optimizer, tmp_path / "run.h5", every=lambda step: bool(asked.append(step))
    ) as recorder:
        train(recorder, model, optimizer, 4)
    assert asked == [0, 1, 2, 3]


def test_latest_is_the_last_well_measured_step_of_the_trace(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=2) as recorder:
        assert recorder.latest is None
        for step, (x, y) in enumerate(batches(6)):
            optimizer.param_groups[0]["lr"] = 0.1 if step < 4 else 0.0
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        recorder.flush()
        latest = recorder.latest
    assert latest.step == 2
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert latest.loss == pytest.approx(trace.loss[1])
        assert latest.smoothness == pytest.approx(trace.cloud().smoothness[1, 0], rel=1e-5)
        assert latest.grad_norm == pytest.approx(trace.cloud().grad_norm[1, 0], rel=1e-5)


def test_unmeasured_steps_may_use_plain_backward(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=2) as recorder:
        for i, (x, y) in enumerate(batches(4)):
            optimizer.zero_grad()
            if i % 2:
                classify(model, x, y).backward()
            else:
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").steps.tolist() == [0, 2]


def test_attached_and_detached_mid_run_the_run_is_the_same(tmp_path):
    def run(record):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        optimizer = torch.optim.Adam(model.parameters())
        recorder = None
        for i, (x, y) in enumerate(batches(9)):
            if record and i == 3:
                recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
            if record and i == 6:
                recorder.close()
            optimizer.zero_grad()
            if recorder is None:
                classify(model, x, y).backward()
            else:
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        return everything(model, optimizer)

    assert differences(run(False), run(True)) == []
    assert len(lsmooth.Trace(tmp_path / "run.h5")) == 3


def test_two_recorders_on_one_loop(tmp_path, model):
    optimizer = sgd(model)
    with (
        lsmooth.Recorder(model, optimizer, tmp_path / "one.h5") as one,
        lsmooth.Recorder(model, optimizer, tmp_path / "two.h5", every=2, gammas=(0.5,), coordinates=0),
    ):
        train(one, model, optimizer, 5)
    first, second = lsmooth.Trace(tmp_path / "one.h5"), lsmooth.Trace(tmp_path / "two.h5")
    assert second.steps.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(second.read("grad_norm"), first.read("grad_norm")[::2])
    np.testing.assert_array_equal(second.read("grad_diff")[:, 0], first.read("grad_diff")[::2, 2])


def test_two_recorders_change_nothing(tmp_path):
    class Both(Recorded):
        def attach(self, model, optimizer):
            super().attach(model, optimizer)
            self.second = lsmooth.Recorder(model, optimizer, tmp_path / "second.h5", every=2)

        def end(self):
            super().end()
            self.second.close()

    def loop(watch):
        model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        return simple(model, sgd(model, momentum=0.9), watch)

    results = []
    for watch in (Bare(), Both(tmp_path / "run.h5")):
        seed_all()
        results.append(everything(*loop(watch)))
    assert differences(*results) == []


def test_two_optimizers_on_one_loss_each_with_a_recorder(tmp_path, model):
    front, back = torch.optim.SGD(model[0].parameters(), lr=0.2), torch.optim.SGD(model[3].parameters(), lr=0.2)
    with (
        lsmooth.Recorder(model, front, tmp_path / "front.h5") as recorder,
        lsmooth.Recorder(model, back, tmp_path / "back.h5"),
    ):
        for x, y in batches(3):
            model.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            front.step()
            back.step()
    assert lsmooth.Trace(tmp_path / "front.h5").parameters == ["0.weight", "0.bias"]
    assert lsmooth.Trace(tmp_path / "back.h5").status_counts() == {"measured": 3}


def test_closure_variables_rebound_before_the_step_do_not_matter(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(3):
            optimizer.zero_grad()
            for part in (slice(0, 4), slice(4, 8)):
                inputs, targets = x[part], y[part]
                recorder.backward(lambda: classify(model, inputs, targets) / 2)  # noqa: B023
            inputs = targets = None
            optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 3}


def test_closure_assigning_to_nonlocal_names_is_not_seen_by_the_loop(tmp_path, model):
    calls = 0
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(3):

            def closure(x=x, y=y):
                nonlocal calls
                calls += 1
                return classify(model, x, y)

            optimizer.zero_grad()
            recorder.backward(closure)
            optimizer.step()
    assert calls == 3


def test_backward_returns_what_the_closure_returned_detached(tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=2) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss, extra = recorder.backward(lambda: (classify(model, x, y), {"logits": model(x), "note": "kept"}))
            assert not loss.requires_grad
            assert not extra["logits"].requires_grad
            assert extra["note"] == "kept"
            optimizer.step()


# --- exceptions and Ctrl-C ---


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("at", range(1, 9))
def test_an_exception_in_a_replay_leaves_everything_as_after_the_step(kind, at, tmp_path):
    def run(record):
        seed_all()
        model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        optimizer = sgd(model, momentum=0.9)
        watch = Recorded(tmp_path / f"{at}.h5") if record else Bare()
        watch.attach(model, optimizer)
        # Replays put back what a closure has counted in a list or an object, but not in a class.
        calls = type("Calls", (), {"made": 0})
        for x, y in batches(3):

            def closure(x=x, y=y):
                calls.made += 1
                # Evaluations of the first step: the step's own, one at x_t, five between, one at x_{t+1}.
                if record and calls.made == at:
                    torch.rand(1), np.random.rand(), random.random()
                    raise kind
                return classify(model, x, y)

            optimizer.zero_grad()
            if record and at == 1 and calls.made == 0:
                # The step's own forward pass fails, as it would without a recorder.
                with pytest.raises(kind):
                    watch.backward(closure)
                watch.end()
                return None
            watch.backward(closure)
            fails = record and 2 <= at <= 8 and calls.made == 1
            # Where not even x_t can be evaluated again, nothing can be measured, which the first step says.
            if fails and (kind is KeyboardInterrupt or at == 2):
                with pytest.raises(kind):
                    optimizer.step()
            elif fails:
                with pytest.warns(UserWarning, match="Step 0 is flagged, since its loss could not be evaluated again"):
                    optimizer.step()
            else:
                optimizer.step()
        watch.end()
        return everything(model, optimizer)

    recorded = run(True)
    trace = lsmooth.Trace(tmp_path / f"{at}.h5")
    if at == 1:
        assert recorded is None
        assert len(trace) == 0
        return
    assert differences(run(False), recorded) == []
    if kind is KeyboardInterrupt or at == 2:
        assert trace.steps.tolist() == [1, 2]
        assert trace.status_counts() == {"measured": 2}
    else:
        assert trace.steps.tolist() == [0, 1, 2]
        assert trace.status_counts() == {"measured": 2, "non_finite": 1, "not_repeated": 1}
        assert np.isfinite(trace.loss).all()
        assert np.isnan(trace.read("grad_norm")[0]).all()


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_an_exception_inside_a_backward_pass_leaves_everything_as_after_the_step(at, tmp_path):
    class Fails(torch.autograd.Function):
        calls = 0

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            Fails.calls += 1
            if Fails.calls == at:
                raise Stop
            return gradient

    def run(path):
        seed_all()
        model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        optimizer = sgd(model, momentum=0.9)
        recorder = lsmooth.Recorder(model, optimizer, path, densities=True) if path else None
        for i, (x, y) in enumerate(batches(3)):
            Fails.calls = 0 if path and i == 0 else 100

            def closure(x=x, y=y):
                # Gradients of the last layer have arrived, and been consumed, when it fails.
                return nn.functional.cross_entropy(model[4](model[3](Fails.apply(model[:3](x)))), y)

            optimizer.zero_grad()
            if recorder is None:
                closure().backward()
            elif at == 1 and i == 0:
                with pytest.raises(Stop):
                    recorder.backward(closure)
                # The loop passes the batch over.
                continue
            else:
                recorder.backward(closure)
            if i == 0 and recorder is not None and at == 2:
                with pytest.raises(Stop):
                    optimizer.step()
            elif i == 0 and recorder is not None:
                with pytest.warns(UserWarning, match="could not be evaluated again, and training goes on: Stop"):
                    optimizer.step()
            else:
                optimizer.step()
        if recorder is not None:
            recorder.close()
        return everything(model, optimizer)

    recorded = run(tmp_path / "run.h5")
    if at > 1:
        assert differences(run(None), recorded) == []
    trace = lsmooth.Trace(tmp_path / "run.h5")
    flagged = {"non_finite": 1, "not_repeated": 1} if at > 2 else {}
    assert trace.status_counts() == {"measured": 2, **flagged}
    assert trace.density("0.weight").steps == 2


@pytest.mark.parametrize("moment", ["move_to", "put_back"])
def test_ctrl_c_between_evaluations_waits_until_all_is_back(moment, tmp_path, monkeypatch, model):
    from lsmooth.replay.segment import Segment

    original = getattr(Segment, moment)
    struck = []

    def strike(self, *arguments):
        if not struck:
            struck.append(moment)
            os.kill(os.getpid(), signal.SIGINT)
            # Python runs signal handlers at the next opportunity: right here.
            for _ in range(100):
                pass
        return original(self, *arguments)

    monkeypatch.setattr(Segment, moment, strike)
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        (x, y), *_ = batches(1)
        optimizer.zero_grad()
        recorder.backward(lambda: classify(model, x, y))
        expected = [p.detach() - 0.3 * p.grad for p in model.parameters()]
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert struck == [moment]
    for got, want in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), want)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- honest numbers ---


def one_step(path, model, optimizer, closure, between=None, **arguments):
    with lsmooth.Recorder(model, optimizer, path, **arguments) as recorder:
        optimizer.zero_grad()
        recorder.backward(closure)
        if between is not None:
            between()
        optimizer.step()
    return lsmooth.Trace(path)


def test_a_zero_learning_rate_is_flagged(tmp_path, model):
    (x, y), *_ = batches(1)
    trace = one_step(tmp_path / "run.h5", model, sgd(model, 0.0), lambda: classify(model, x, y))
    assert trace.status.tolist() == [Status.NO_DISPLACEMENT]
    assert not trace.cloud().usable.any()


@pytest.mark.parametrize(("lr", "expected"), [(1e-7, Status.BELOW_RESOLUTION), (1e-1, Status.MEASURED)])
def test_steps_below_float_resolution_are_flagged(lr, expected, tmp_path, model):
    (x, y), *_ = batches(1)
    trace = one_step(tmp_path / "run.h5", model, sgd(model, lr), lambda: classify(model, x, y))
    assert trace.status.tolist() == [expected]


def test_the_resolution_bound_holds_for_the_rounding_that_really_happens(tmp_path):
    seed_all()
    start = torch.randn(10_000)
    for lr in (1e-3, 1e-4, 1e-5, 1e-6):
        model = Function(start, lambda x: x.square().sum() / 2)
        trace = one_step(tmp_path / f"{lr}.h5", model, sgd(model, lr), model)
        stop = model.x.detach()
        exact = start.double() + (stop.double() - start.double()) / 6
        rounding = (torch.lerp(start, stop, 1 / 6).double() - exact).norm()
        share = (rounding / ((stop.double() - start.double()).norm() / 6)).item()
        if share > 0.01:
            assert trace.status.tolist() == [Status.BELOW_RESOLUTION]
        if trace.status.tolist() == [Status.MEASURED]:
            assert share <= 0.01
            # What passes is also right: the curvature of this function is 1.
            assert abs(trace.cloud().smoothness.item() - 1) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_resolution_bound_holds_in_every_dtype(dtype, tmp_path):
    seed_all()
    # A few times the distance between neighbours around 0.
    least = 8 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    passed = []
    for size, target in ((1.0, 1.0), (0.1, 1.0), (1e-2, 1.0), (1e-4, 1.0), (1e3, 1.0), (least, 2.5 * least)):
        start = (torch.randn(10_000) * size).to(dtype)
        model = Function(start, lambda x, target=target: (x.double() - target).square().sum() / 2)
        trace = one_step(tmp_path / f"{size}.h5", model, sgd(model, 0.01 if size > 100 else 0.5), model)
        stop = model.x.detach()
        moved = (stop.double() - start.double()) / 6
        share = (torch.lerp(start, stop, 1 / 6).double() - start.double() - moved).norm() / moved.norm()
        status = trace.status[0]
        if share > 0.01:
            assert status & Status.BELOW_RESOLUTION
        passed.append(status == Status.MEASURED)
    # It lets steps pass, and it catches those between numbers too small to have all digits.
    assert any(passed)
    assert not passed[-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_losses_are_flagged(value, tmp_path, model):
    (x, y), *_ = batches(1)
    trace = one_step(tmp_path / "run.h5", model, sgd(model), lambda: classify(model, x, y) * value)
    assert trace.status[0] & Status.NON_FINITE
    assert not trace.status[0] & Status.MEASURED


def test_cuda_graphs_need_cuda(tmp_path):
    with torch.device("cpu"):
        model = mlp()
    with pytest.raises(InvalidArgumentError, match="cuda_graphs=True needs a model on an NVIDIA GPU"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", cuda_graphs=True)
    assert not (tmp_path / "run.h5").exists()


def test_parameters_changed_between_backward_and_step_are_flagged(tmp_path, model):
    (x, y), *_ = batches(1)

    def move():
        with torch.no_grad():
            model[0].weight.mul_(0.5)

    trace = one_step(tmp_path / "run.h5", model, sgd(model), lambda: classify(model, x, y), move)
    assert trace.status[0] & Status.MOVED


@pytest.mark.parametrize("edit", ["in place", "past the version counter", "signs past the version counter"])
def test_a_gradient_that_training_changes_is_found_again_and_copied_from_then_on(edit, tmp_path, model, device):
    optimizer = sgd(model)
    # Replays put back what a closure has appended to a list, but not what a class has counted.
    evaluations = type("Evaluations", (), {"made": 0})

    def step(recorder, x, y):
        def closure():
            evaluations.made += 1
            return classify(model, x, y)

        optimizer.zero_grad()
        recorder.backward(closure)
        gradient = [p.grad.clone() for p in model.parameters()]
        for p in model.parameters():
            (p.grad if edit == "in place" else p.grad.data).mul_(-1 if edit.startswith("signs") else 0.5)
        optimizer.step()
        return [g.norm().item() for g in gradient]

    counts, expected = [], []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", gammas=(0.5,), endpoint=False) as recorder:
        for x, y in batches(3):
            evaluations.made = 0
            expected.append(step(recorder, x, y))
            counts.append(evaluations.made)
            recorder.flush()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    first = 0
    if device == "cuda" and edit != "in place":
        # Nothing waits to see it: the first step is flagged, and the next one's gradient copied.
        first = 1
        assert trace.status.tolist() == [Status.OTHER_GRADIENT, Status.MEASURED, Status.MEASURED]
        assert counts == [3, 2, 2]
    else:
        # The step's own, that at the one point, and in the first step the gradient at x_t again; in the second, the
        # check that a replay gives the step's own gradient.
        assert counts == [3, 3, 2]
    np.testing.assert_allclose(trace.read("grad_norm")[first:], expected[first:], rtol=1e-6)


def test_where_a_changed_gradient_cannot_be_read_at_once_the_step_is_flagged(tmp_path, model, monkeypatch):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        judge = Row.judge

        def judge_as_edited(row):
            row["edited_grad"].fill_(1.0)
            return judge(row)

        with monkeypatch.context() as patch:
            patch.setattr(Row, "judge", judge_as_edited)
            train(recorder, model, optimizer, 1)
        recorder.flush()
        borrowed = []
        take = StepGradient.take
        monkeypatch.setattr(
            StepGradient, "take", lambda gradient, scaled: (take(gradient, scaled), borrowed.append(gradient.borrowed))
        )
        train(recorder, model, optimizer, 1)
        assert borrowed == [{}]
    assert list(lsmooth.Trace(tmp_path / "run.h5").status) == [Status.OTHER_GRADIENT, Status.MEASURED]


def test_gradients_that_the_recorder_did_not_see_are_flagged(tmp_path, model):
    (x, y), *_ = batches(1)
    optimizer = sgd(model)
    classify(model, x, y).backward()
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        recorder.backward(lambda: classify(model, x, y))
        optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").status[0] & Status.OTHER_GRADIENT


def test_tiny_gradients_do_not_underflow(tmp_path):
    seed_all()
    model = Function(torch.randn(300) * 1e-3, lambda x: (x.square().sum() / 2) * 1e-30)
    trace = one_step(tmp_path / "run.h5", model, sgd(model, 1e29), model)
    assert trace.status.tolist() == [Status.MEASURED]
    np.testing.assert_allclose(trace.cloud().smoothness, 1e-30, rtol=1e-4)


def test_float64_gradients_whose_squares_leave_its_range(tmp_path):
    seed_all()
    for size in (1e-200, 1e200):
        model = Function(torch.randn(300, dtype=torch.float64), lambda x, size=size: (x * size * x / 2).sum())
        trace = one_step(tmp_path / f"{size}.h5", model, sgd(model, 0.1 / size), model, norms=("linf",))
        assert trace.status.tolist() == [Status.MEASURED]
        for by in ("global", "parameter"):
            np.testing.assert_allclose(trace.cloud(by).smoothness, size, rtol=1e-9)


def test_norms_too_large_for_the_file_are_flagged(tmp_path):
    # Entries of 3e38 fit into float32, the norm of a hundred of them does not; the losses are finite.
    sign = torch.ones(100)
    sign[::2] = -1
    model = Function(torch.ones(100), lambda x: (x * sign).sum() * 3e38)
    trace = one_step(tmp_path / "run.h5", model, sgd(model, 1e-41), model)
    assert np.isfinite(trace.loss).all()
    assert np.isfinite(trace.read("loss_next")).all()
    assert trace.status.tolist() == [Status.NON_FINITE]


def test_low_precision_gradients_keep_the_digits_they_share(tmp_path):
    # Gradients of 256 and 255: a thousand differences of 1 would stop adding up at 256 in a bfloat16 sum.
    model = Function(torch.full((1000,), 256.0, dtype=torch.bfloat16), lambda x: (x.float().square() / 2).sum())
    optimizer = sgd(model, 2**-8)
    trace = one_step(tmp_path / "run.h5", model, optimizer, model, gammas=(1.0,))
    assert trace.read("step_norm")[0, 0] == pytest.approx(np.sqrt(1000), rel=1e-6)
    np.testing.assert_allclose(trace.read("grad_diff")[0, 0, 0], np.sqrt(1000), rtol=1e-6)


def test_a_closure_that_is_not_a_function_of_the_parameters_is_warned_about(tmp_path, model):
    stream = iter(batches(100))
    optimizer = sgd(model)
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    optimizer.zero_grad()
    recorder.backward(lambda: classify(model, *next(stream)))
    optimizer.step()
    with pytest.warns(UserWarning, match="evaluated a second time"):
        recorder.close()


# --- no waiting ---


class CountsWaits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith(("aten._local_scalar_dense", "aten.item", "aten.nonzero", "aten.equal", "aten.is_nonzero")):
            self.seen.append(name)
        result = func(*args, **(kwargs or {}))
        if name.startswith(("aten._to_copy", "aten.copy_")):
            source = args[1] if name.startswith("aten.copy_") else args[0]
            if result.device.type == "cpu" and source.device.type != "cpu":
                self.seen.append(name)
        return result


def test_nothing_in_a_measured_step_waits_for_the_device(tmp_path, model):
    optimizer = sgd(model, momentum=0.9)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        train(recorder, model, optimizer, 2)
        counts = CountsWaits()
        with counts:
            train(recorder, model, optimizer, 2)
        # The check sees what it is meant to see.
        with CountsWaits() as control:
            model[0].weight.sum().item()
    assert counts.seen == []
    assert control.seen


# --- probes ---


def test_probes_measure_the_mean_of_fixed_batches(tmp_path):
    seed_all()
    model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8)).double()
    optimizer = sgd(model)
    fixed = [(x.double(), y) for x, y in batches(3, size=16, seed=7)]
    probes = [lambda x=x, y=y: classify(model, x, y) for x, y in fixed]
    expected = []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probes, seed=5) as recorder:
        for x, y in batches(4):
            optimizer.zero_grad()
            classify(model, x.double(), y).backward()
            rng, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
            gradients, losses = [], []
            for probe in probes:
                torch.manual_seed(5)
                loss = probe()
                gradients.append(torch.autograd.grad(loss, list(model.parameters())))
                losses.append(loss.item())
                for buffer, copy in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(copy)
            torch.set_rng_state(rng)
            mean = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
            noise = [(sum((g[i] - m).square().sum() for g in gradients) / 2).sqrt().item() for i, m in enumerate(mean)]
            expected.append((np.mean(losses), [m.norm().item() for m in mean], noise))
            optimizer.step()
    assert recorder.step == 4
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status_counts() == {"measured": 4}
    np.testing.assert_allclose(trace.loss, [row[0] for row in expected], rtol=1e-10)
    np.testing.assert_allclose(trace.read("grad_norm"), [row[1] for row in expected], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(trace.read("grad_noise"), [row[2] for row in expected], rtol=1e-8, atol=1e-14)
    assert trace.metadata["objective"] == "mean of 3 probe losses"


def test_probes_change_nothing(tmp_path):
    fixed = batches(2, size=16, seed=7)

    def loop(watch):
        model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        if isinstance(watch, Recorded):
            watch.arguments["probe"] = [lambda x=x, y=y: classify(model, x, y) for x, y in fixed]
        return simple(model, sgd(model, momentum=0.9), watch)

    results = []
    for watch in (Bare(), Recorded(tmp_path / "run.h5")):
        seed_all()
        results.append(everything(*loop(watch)))
    assert differences(*results) == []


def test_the_probe_on_a_quadratic_has_its_curvature(tmp_path):
    seed_all()
    factor = torch.randn(10, 10, dtype=torch.float64)
    hessian = factor @ factor.T
    model = Function(torch.randn(10, dtype=torch.float64), lambda x: x @ hessian @ x / 2)
    optimizer = sgd(model, 1e-3)
    before = model.x.detach().clone()
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=model) as recorder:
        optimizer.zero_grad()
        recorder.backward(lambda: (model.x * torch.arange(10)).sum())
        optimizer.step()
    d = model.x.detach() - before
    got = lsmooth.Trace(tmp_path / "run.h5").cloud().smoothness.item()
    assert got == pytest.approx(((hessian @ d).norm() / d.norm()).item(), rel=1e-9)


# --- refusals ---


def test_lbfgs_is_refused(tmp_path, model):
    with pytest.raises(InvalidArgumentError, match="LBFGS evaluates the loss several times"):
        lsmooth.Recorder(model, torch.optim.LBFGS(model.parameters()), tmp_path / "run.h5")


def test_a_step_whose_closure_computes_no_gradient_is_refused(tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with (
        lsmooth.Recorder(model, optimizer, tmp_path / "run.h5"),
        pytest.raises(RecorderError, match=r"without recorder.backward; replace loss.backward\(\)"),
    ):
        optimizer.step(lambda: classify(model, x, y))


def test_gradients_of_recorder_backward_are_measured_where_the_step_is_given_a_closure(tmp_path):
    """Trainers hand one to every step; the gradient is computed before it (it then does nothing), or inside of it."""

    def run(how):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        optimizer = sgd(model, momentum=0.9)
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{how}.h5") as recorder:
            for x, y in batches(4):

                def compute(x=x, y=y):
                    optimizer.zero_grad()
                    return recorder.backward(lambda: classify(model, x, y))

                if how == "inside":
                    optimizer.step(compute)
                else:
                    compute()
                    optimizer.step(closure=(lambda: None) if how == "before" else None)
        with lsmooth.Trace(tmp_path / f"{how}.h5") as trace:
            assert trace.status_counts() == {"measured": 4}
            return everything(model, optimizer), trace.read("grad_diff")

    state, changes = run("plain")
    for how in ("before", "inside"):
        other, found = run(how)
        assert differences(state, other) == []
        np.testing.assert_array_equal(found, changes)


def test_sparse_gradients_are_refused(tmp_path):
    model = nn.EmbeddingBag(5, 3, sparse=True, mode="sum")
    optimizer = sgd(model)
    with (
        lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder,
        pytest.raises(RecorderError, match="weight has a sparse gradient"),
    ):
        recorder.backward(lambda: model(torch.tensor([[0, 1]])).sum())


def test_complex_parameters_are_refused(tmp_path):
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(InvalidArgumentError, match="weight is complex"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")


def test_optimizers_that_step_inside_backward_are_refused(tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)

    @torch.no_grad()
    def step_at_once(p):
        p.sub_(0.1 * p.grad)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step_at_once)
    with (
        lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder,
        pytest.raises(RecorderError, match="changed inside backward"),
    ):
        recorder.backward(lambda: classify(model, x, y))


def test_models_on_the_meta_device_are_refused(tmp_path):
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(InvalidArgumentError, match="meta device"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda loss: loss.expand(3), r"loss of shape \(3,\)"),
        (lambda loss: None, "returned NoneType"),
        (lambda loss: loss.detach(), "no parameter has a gradient of"),
    ],
)
def test_closures_that_return_no_loss_are_refused(every, value, message, tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=lambda step: every == 1) as recorder:  # noqa: SIM117
        with pytest.raises(RecorderError, match=message):
            recorder.backward(lambda: value(classify(model, x, y)))


def test_a_measured_step_without_recorder_backward_is_refused(tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5"):
        classify(model, x, y).backward()
        with pytest.raises(RecorderError, match=r"without recorder\.backward"):
            optimizer.step()


@pytest.mark.parametrize("gammas", [(), (0.0,), (-0.1,), (1.5,), (float("nan"),), (0.5, 0.5)])
def test_gammas_outside_their_range_are_refused(gammas, tmp_path, model):
    with pytest.raises(InvalidArgumentError, match="gammas="):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", gammas=gammas)


def test_gamma_1_may_stand_beside_the_endpoint(tmp_path, model):
    (x, y), *_ = batches(1)
    trace = one_step(tmp_path / "run.h5", model, sgd(model), lambda: classify(model, x, y), gammas=(0.5, 1.0))
    assert trace.read("loss_next")[0] == trace.read("loss_along")[0, 1]
    np.testing.assert_array_equal(trace.read("coordinate/grad_next")[0], trace.read("coordinate/grad_along")[0, 1])


def test_a_model_without_shapes_is_refused(tmp_path):
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(InvalidArgumentError, match=r"^0\.weight has no shape yet; run the model on a batch before"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")


def test_an_optimizer_of_frozen_parameters_is_refused(tmp_path, model):
    model.requires_grad_(False)
    with pytest.raises(InvalidArgumentError, match="None of the optimizer's parameters requires a gradient"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"every": True}, {"every": "2"}, {"coordinates": -1}, {"mode": "r"}, {"probe": [1]}]
)
def test_arguments_out_of_range_are_refused(arguments, tmp_path, model):
    with pytest.raises(InvalidArgumentError):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", **arguments)
    assert not (tmp_path / "run.h5").exists()


def test_arguments_may_be_numpys(tmp_path, model):
    arguments = {"every": np.int64(2), "coordinates": np.int32(1), "gammas": np.array([0.5, 1.0])}
    metadata = {"width": np.int64(8), "rate": np.float32(0.5), "sizes": np.arange(3), "sweep": {"seeds": (1, 2)}}
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", metadata=metadata, **arguments) as recorder:
        train(recorder, model, optimizer, 3)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0, 2]
        assert trace.metadata["every"] == 2
        assert trace.metadata["user_metadata"] == {
            "width": 8, "rate": 0.5, "sizes": [0, 1, 2], "sweep": {"seeds": [1, 2]},
        }  # fmt: skip


def test_an_existing_file_is_refused_and_left_alone(tmp_path, model):
    (tmp_path / "run.h5").write_bytes(b"precious")
    with pytest.raises(TraceError, match="exists already"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")
    assert (tmp_path / "run.h5").read_bytes() == b"precious"


def test_parameters_added_to_the_optimizer_later_are_held_and_the_steps_flagged(tmp_path, model):
    def run(path):
        seed_all()
        model = mlp()
        first, last = [module for module in model if isinstance(module, nn.Linear)]
        last.requires_grad_(False)
        optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        for i, (x, y) in enumerate(batches(4)):
            if i == 2:
                last.requires_grad_(True)
                optimizer.add_param_group({"params": last.parameters(), "lr": 0.2})
            optimizer.zero_grad()
            if recorder is None:
                classify(model, x, y).backward()
            else:
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        if recorder is not None:
            recorder.close()
        return everything(model, optimizer)

    with pytest.warns(UserWarning, match="gained parameters .* from step 2 on"):
        recorded = run(tmp_path / "run.h5")
    assert differences(run(None), recorded) == []
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status.tolist() == [Status.MEASURED, Status.MEASURED, Status.PARTIAL, Status.PARTIAL]
    assert trace.parameters == ["0.weight", "0.bias"]
    assert np.isfinite(trace.cloud().smoothness).all()
    assert trace.lr.tolist() == [[0.1]] * 4


# --- leaving nothing behind ---


def test_a_closed_recorder_is_not_kept_alive(tmp_path, model):
    optimizer = sgd(model)
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    train(recorder, model, optimizer, 1)
    recorder.close()
    recorder.close()
    reference = weakref.ref(recorder)
    del recorder
    import gc

    gc.collect()
    assert reference() is None


def test_a_loop_goes_on_with_a_closed_recorder(tmp_path, model):
    optimizer = sgd(model)
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    recorder.close()
    before = model[0].weight.detach().clone()
    train(recorder, model, optimizer, 2)
    assert not torch.equal(model[0].weight, before)
    assert len(lsmooth.Trace(tmp_path / "run.h5")) == 0


def test_no_gradient_copies_are_held_between_steps(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        train(recorder, model, optimizer, 2)
        assert not recorder._attempts.begun


def test_reprs_say_what_there_is(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        train(recorder, model, optimizer, 2)
        assert "4 parameter tensors, next step 2" in repr(recorder)
    assert "closed" in repr(recorder)
    assert "2 measured steps, 2 of them well" in repr(lsmooth.Trace(tmp_path / "run.h5"))


def test_time_goes_on_when_a_run_is_resumed(tmp_path, monkeypatch):
    """Seconds of the run, as if there had been no gap; from the last row kept, where the checkpoint knows no time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lsmooth.measure.recording.time", SimpleNamespace(monotonic=lambda: clock.now))

    def run(first, last, mode, state=None):
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", mode=mode) as recorder:
            if state is not None:
                recorder.load_state_dict(state)
            for step in range(first, last):
                clock.now += 10
                optimizer.zero_grad()
                recorder.backward(lambda: model(torch.ones(2, 3)).square().mean())
                optimizer.step()
                if step == 4:
                    clock.now += 2
                    state = recorder.state_dict()
        return state

    state = run(0, 8, "x")
    clock.now += 1000
    run(5, 7, "a", state)
    np.testing.assert_array_equal(lsmooth.Trace(tmp_path / "run.h5").time, [10, 20, 30, 40, 50, 62, 72])
    clock.now += 1000
    run(5, 6, "a", {"step": 5})
    np.testing.assert_array_equal(lsmooth.Trace(tmp_path / "run.h5").time, [10, 20, 30, 40, 50, 60])
    clock.now += 1000
    run(6, 7, "a")
    np.testing.assert_array_equal(lsmooth.Trace(tmp_path / "run.h5").time, [10, 20, 30, 40, 50, 60, 70])


@pytest.fixture(params=[torch.float64, torch.bfloat16, "meta"], ids=str)
def other_default(request):
    """A context in which tensors are made with another dtype, or elsewhere, unless they are told."""

    @contextlib.contextmanager
    def context():
        if isinstance(request.param, str):
            with torch.device(request.param):
                yield
        else:
            before = torch.get_default_dtype()
            torch.set_default_dtype(request.param)
            yield
            torch.set_default_dtype(before)

    return context


@pytest.mark.parametrize("arguments", [{}, {"norms": ("linf", "spectral"), "densities": True}, {"probe": 2}])
def test_torchs_defaults_for_new_tensors_do_not_matter(arguments, other_default, tmp_path):
    def numbers(name, context):
        seed_all()
        # One layer is large enough to be taken in pieces.
        model = nn.Sequential(nn.Linear(6, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 3))
        optimizer = sgd(model)
        given = dict(arguments)
        if "probe" in given:
            given["probe"] = [lambda x=x, y=y: classify(model, x, y) for x, y in batches(given["probe"])]
        data = batches(3)
        with context(), lsmooth.Recorder(model, optimizer, tmp_path / name, **given) as recorder:
            for x, y in data:
                optimizer.zero_grad()
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
                optimizer.step()
        with h5py.File(tmp_path / name) as file:
            found = {}
            file.visititems(lambda path, item: found.update({path: item[()]} if isinstance(item, h5py.Dataset) else {}))
        # Clock times differ; newest rows are kept a second time, with theirs.
        return {path: values for path, values in found.items() if path not in ("time", "recent/rows")}

    expected, found = numbers("as_ever.h5", contextlib.nullcontext), numbers("other.h5", other_default)
    assert {"grad_diff", "step_norm", "coordinate/grad_along"} <= expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
