"""What is flagged, and numbers at the ends of their ranges."""

import numpy as np
import pytest
import torch
from loops import Function, batches, classify, mlp, not_put_back, one_step, seed_all, sgd, train
from rows import header

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.estimators import rounding_noise
from lsmooth.loop.gradient import StepGradient
from lsmooth.measure.row import Row, RowLayout
from lsmooth.trace.layout import NOISE_SHARE, Status

pytestmark = pytest.mark.usefixtures("device")


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
    evaluations = not_put_back(made=0)

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


@pytest.mark.parametrize("bound", [0.5, 0.02])
@pytest.mark.parametrize("gammas", [[0.2, 0.4, 0.6, 0.8, 1.0], [0.25, 0.5, 0.75]])
def test_a_row_is_noisy_where_the_formula_says_so(gammas, bound, device):
    fields = header(gammas=gammas).fields()
    layout = RowLayout(fields, header(gammas=gammas).sizes(), gammas, "float32")
    generator = np.random.default_rng(0)
    found = []
    for share in np.geomspace(1e-3, 1, 40):
        row = Row(layout, torch.device(device))
        changes = np.hypot(np.array(gammas)[:, None], 0.2 * share * generator.normal(size=(len(gammas), 4)))
        for name, values in (("grad_diff", changes), ("grad_norm", np.ones(4)), ("step_norm", np.ones(4))):
            row[name].copy_(torch.from_numpy(values))
        row["rounding_bound"].fill_(bound)
        row.judge()
        total = np.linalg.norm(changes, axis=1)
        noise = rounding_noise(total[None, :, None], layout.gammas, np.array([[bound * 2.0]]))[0, 0]
        np.testing.assert_allclose(row["grad_diff_noise"].item(), noise, rtol=1e-4, atol=1e-6)
        spoiled = noise > NOISE_SHARE * total[np.argmax(total / layout.gammas)]
        assert int(row["status"].item()) == (Status.NOISY if spoiled else Status.MEASURED)
        found.append(spoiled)
    # Where arithmetic cannot have done that much, nothing is.
    assert any(found) == (len(gammas) > 3 and bound == 0.5)
    assert not all(found)
