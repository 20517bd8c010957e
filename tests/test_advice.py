"""Advice: the numbers in it, recomputed; nothing where the trace lacks what it needs."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import lsmooth
import lsmooth.advice
import lsmooth.fit.groups
from lsmooth.advice import advise
from lsmooth.cli import main
from lsmooth.theory import theorem1


def traced(
    path,
    optimizer=None,
    steps=15,
    curvatures=(1.0, 4.0),
    lr=0.1,
    probes=0,
    shift=0.0,
    clip=math.inf,
    critical=False,
    **arguments,
):
    """Train two tensors on a parabola in float64; `probes` noisy batches measure the gradient's noise."""
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
            self.b = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

        def loss(self, noise=0.0):
            value = curvatures[0] * self.a.square().sum() / 2 + curvatures[1] * self.b.square().sum() / 2
            return value + noise * (self.a.sum() + self.b.sum()) + shift

    model = Model()
    optimizer = (optimizer or torch.optim.SGD)(model.parameters(), lr=lr, **arguments)
    probe = [lambda noise=noise: model.loss(noise) for noise in np.linspace(-0.3, 0.3, probes)] if probes else None
    with lsmooth.Recorder(model, optimizer, path, probe=probe, critical=critical) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            recorder.backward(model.loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return lsmooth.Trace(path)


def said(trace, **arguments):
    report = advise(trace, **arguments)
    return {item.name: item for item in report.advice}, report.left_out


def test_advice_draws_no_intervals_which_it_does_not_tell(small_trace, monkeypatch):
    asked = []

    def watched(*arguments, **named):
        asked.append(named.get("confidence", 0.9))
        return lsmooth.fit.groups.estimate(*arguments, **named)

    monkeypatch.setattr(lsmooth.fit, "estimate", watched, raising=False)
    with lsmooth.Trace(small_trace) as trace:
        advise(trace)
    assert len(asked) > 2
    assert set(asked) == {None}


def test_stable_step_counts_the_steps_whose_lr_is_above_it(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        advice, _ = said(trace)
        limits = 2 / trace.cloud().smoothness[:, 0]
        values = advice["stable step"].values
        assert values["share_above"] == (trace.lr[:, 0] > limits).mean()
        assert values["median"] == pytest.approx(np.median(limits))
        assert (values["least"], values["largest"]) == pytest.approx((limits.min(), limits.max()))
        assert f"{np.median(limits):.3g}" in advice["stable step"].text


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "nesterov": True},
        {"momentum": 0.8, "dampening": 0.8},
    ],
)
def test_the_stable_step_is_where_sgd_on_a_parabola_turns(tmp_path, arguments):
    """Below the limit iterates shrink, above it they grow."""
    L = 3.0
    trace = traced(tmp_path / "run.h5", curvatures=(L, L), lr=0.01, **arguments)
    limit = said(trace)[0]["stable step"].values["median"]
    for factor, shrinks in ((0.97, True), (1.03, False)):
        x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([x], lr=factor * limit, **arguments)
        for _ in range(600):
            x.grad = L * x.detach()
            optimizer.step()
        assert (abs(x.item()) < 1) == shrinks


def test_no_step_is_called_stable(small_trace, tmp_path):
    with lsmooth.Trace(small_trace) as trace:
        text = said(trace)[0]["stable step"].text
    assert text.startswith("No step above ")
    assert "The limit may be far lower" in text
    assert "largest stable" not in text
    momentum = said(traced(tmp_path / "run.h5", curvatures=(3.0, 3.0), lr=0.01, momentum=0.9))[0]["stable step"]
    assert momentum.values["median"] == pytest.approx(2 * 1.9 / 3)
    assert momentum.values["small_batch_median"] == pytest.approx(2 * 0.1 / 3)
    assert f"2 (1 - momentum) / L, {2 * 0.1 / 3:.3g} in the median" in momentum.text
    assert "Polyak" in momentum.source
    assert "Andreyev" in momentum.source


def test_what_is_said_of_a_network_is_an_upper_bound_of_its_limit(tmp_path):
    """Gradient descent on a network in full batches: the limit by the Hessian is never above what is said."""
    model, loss = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    sharpest = []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(12):
            start = flat(model)
            optimizer.zero_grad()
            recorder.backward(loss)
            optimizer.step()
            sharpest.append(largest_on_segment(model, loss, start, flat(model)))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        smoothness = trace.cloud().smoothness[:, 0]
        values = said(trace)[0]["stable step"].values
    assert (smoothness <= np.array(sharpest) * (1 + 1e-6)).all()
    assert values["median"] >= 2 / np.median(sharpest)
    # And by far: the steps do not go where the curvature is largest.
    assert values["median"] > 2 * 2 / np.median(sharpest)


def test_the_estimate_of_short_steps_is_that_of_the_hessian(tmp_path):
    """‖Delta‖/‖d‖ goes to ‖H d‖/‖d‖ as steps shrink, with an error in proportion to the step."""
    errors = []
    for lr in (1e-1, 1e-2, 1e-3):
        model, loss = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{lr}.h5") as recorder:
            start = flat(model)
            optimizer.zero_grad()
            recorder.backward(loss)
            optimizer.step()
        direction = flat(model) - start
        with lsmooth.Trace(tmp_path / f"{lr}.h5") as trace:
            found = trace.cloud().smoothness[0, 0]
        expected = (hessian(model, loss, start) @ direction).norm() / direction.norm()
        errors.append(abs(found / expected.item() - 1))
    assert errors[2] < 1e-3
    assert errors[2] < errors[1] / 5 < errors[0] / 25


def network():
    """Return a small network in float64 and its loss on one batch."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 5).double(), torch.randn(40, 3).double()
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    return model, lambda: 0.5 * (model(inputs) - targets).square().sum(1).mean()


def flat(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def hessian(model, loss, at):
    """Return the Hessian at a vector of parameters, column by column, and put the parameters back."""
    here = flat(model)
    torch.nn.utils.vector_to_parameters(at, model.parameters())
    parameters = list(model.parameters())
    gradient = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss(), parameters, create_graph=True)])
    each = torch.eye(len(gradient), dtype=gradient.dtype)
    rows = torch.autograd.grad(gradient, parameters, each, is_grads_batched=True)
    torch.nn.utils.vector_to_parameters(here, model.parameters())
    return torch.cat([part.flatten(1) for part in rows], dim=1)


def largest_on_segment(model, loss, start, end):
    """Return the largest size of a Hessian eigenvalue at 13 points of a segment."""
    points = [start + gamma * (end - start) for gamma in np.linspace(0, 1, 13)]
    return max(torch.linalg.eigvalsh(hessian(model, loss, point)).abs().max().item() for point in points)


def test_the_edge_is_told_with_the_traces_numbers(tmp_path):
    """Where the curvature is 4, lr 0.55 is beyond 2 / 4: that coordinate grows, and soon makes up the step."""
    with traced(tmp_path / "run.h5", lr=0.55, curvatures=(1.7, 4.0)) as trace:
        ratios = trace.curvature().edge_ratio.to_numpy()
        raised = trace.read("loss_next") > trace.loss
        edge = said(trace)[0]["edge"]
    assert 0 < (ratios > 2).sum() < len(ratios)
    assert edge.values == {
        "median": pytest.approx(np.median(ratios), rel=1e-9),
        "share_above": (ratios > 2).mean(),
        "share_raised": raised.mean(),
        "steps": 15,
    }
    assert f"was {np.median(ratios):.3g} in the median" in edge.text
    # On a quadratic, the loss rises at those steps and at no others.
    np.testing.assert_array_equal(ratios > 2, raised)


@pytest.mark.parametrize(("probes", "whose"), [(0, "its own batch's loss"), (2, "the probes' mean loss")])
def test_it_says_whose_loss_the_steps_change(tmp_path, probes, whose):
    with traced(tmp_path / "run.h5", probes=probes, critical=True) as trace:
        advice = said(trace)[0]
    assert f"a step on a quadratic raises {whose}, at" in advice["edge"].text
    assert f"A step raised {whose} from" in advice["critical lr"].text
    assert f"lowers {whose} where" in advice["descent step"].text


def test_clipped_steps_are_held_against_the_limit_as_long_as_they_are(tmp_path):
    clipped = traced(tmp_path / "clipped.h5", lr=0.6, clip=1.0)
    text = said(clipped)[0]["stable step"].text
    norm = clipped.cloud().grad_norm[:, 0]
    rates = 0.6 / np.maximum(norm, 1)
    share = 100 * (rates > 2 / clipped.cloud().smoothness[:, 0]).mean()
    assert f"But {100 * (norm > 1).mean():.3g} % of them were shorter" in text
    assert f"|d|/|g|, had a median of {np.median(rates):.3g} and was above the limit at {share:.3g} %" in text
    for name, others in (("whole", {}), ("decayed", {"weight_decay": 0.1}), ("adam", {"optimizer": torch.optim.Adam})):
        assert "|d|/|g|" not in said(traced(tmp_path / f"{name}.h5", **others))[0]["stable step"].text


def test_adaptive_optimizers_are_told_that_it_is_no_limit(tmp_path):
    advice, _ = said(traced(tmp_path / "run.h5", torch.optim.Adam))
    assert "for Adam it is a mark, not a limit" in advice["stable step"].text


def test_clipping_threshold_is_l0_over_l1_of_the_trend(tmp_path):
    """exp's second derivative is its first, and it has a floor from the parabola."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(4.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(80):
            optimizer.zero_grad()
            recorder.backward(lambda: model.weight.exp().sum() + model.weight.square().sum())
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        advice, _ = said(trace)
        row = lsmooth.estimate(trace, method="trend").iloc[0]
        norms = trace.cloud().grad_norm[:, 0]
    values = advice["clipping"].values
    assert row.L0 > 0 < row.L1
    assert values["threshold"] == pytest.approx(row.L0 / row.L1)
    assert values["share_above"] == pytest.approx((norms > row.L0 / row.L1).mean())
    assert 0 < values["share_above"] < 1
    assert f"max_norm={row.L0 / row.L1:.3g}" in advice["clipping"].text


@pytest.mark.parametrize(
    ("L0", "L1", "threshold", "words"),
    [(0.0, 4.0, 0.0, "steps of one length, about 1/L1 = 0.25"), (2.0, 0.0, None, "nothing calls for clipping")],
)
def test_clipping_at_the_ends(monkeypatch, L0, L1, threshold, words):
    monkeypatch.setattr("lsmooth.advice._constants", lambda trace, method: (L0, L1, np.ones(5)))
    advice = lsmooth.advice._clipping(None)
    assert words in advice.text
    assert advice.values["threshold"] == threshold
    assert advice.values["share_above"] == (1 if L1 else 0)


def test_a_parabola_needs_no_clipping_and_descends_at_one_over_l(tmp_path):
    advice, left_out = said(traced(tmp_path / "run.h5", curvatures=(4.0, 4.0)))
    assert advice["clipping"].values["threshold"] is None or advice["clipping"].values["share_above"] == 0
    assert advice["descent step"].values["median"] == pytest.approx(1 / 4)
    assert advice["descent"].values["share"] == 1
    assert "probe=" in left_out["theorem 1"]


def test_theorem_1_is_asked_with_the_runs_numbers(tmp_path):
    trace = traced(tmp_path / "run.h5", probes=4, steps=20)
    advice, left_out = said(trace)
    assert left_out == {}
    values = advice["theorem 1"].values
    lines = lsmooth.estimate(trace, "parameter", method="envelope", displacement="global")
    # One standard deviation for all coordinates, that of the probes' slopes.
    sigma = trace.read("grad_noise").max(axis=0) / np.sqrt([2, 1])
    np.testing.assert_allclose(sigma, sigma[0])
    expected = theorem1(
        L0=np.repeat(lines["L0"].to_numpy() * np.sqrt(3 / np.array([2, 1])), [2, 1]),
        L1=np.repeat(lines["L1"].to_numpy(), [2, 1]),
        sigma=sigma[0],
        delta=trace.loss[0],
        steps=20,
    )
    assert (values["beta1"], values["lr"]) == pytest.approx((expected.beta1, expected.lr))
    assert values["least_steps"] == pytest.approx(expected.least_steps)
    assert f"beta1 = {expected.beta1:.4g}" in advice["theorem 1"].text
    assert "beta2 must be below" in said(trace, beta2=0.99)[1]["theorem 1"]


def test_losses_below_zero_are_no_bound(tmp_path):
    _, left_out = said(traced(tmp_path / "run.h5", probes=3, shift=-100.0))
    assert "losses fall below 0" in left_out["theorem 1"]


def test_a_short_run_says_why_it_says_little(tmp_path):
    advice, left_out = said(traced(tmp_path / "run.h5", steps=4))
    assert list(advice) == ["stable step", "edge"]
    assert "4 usable points" in left_out["clipping"]
    empty, reasons = said(traced(tmp_path / "empty.h5", steps=0))
    assert empty == {}
    assert len(reasons) == 6


def test_every_statement_has_its_formula_and_source(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        for item in said(trace)[0].values():
            assert item.formula
            assert item.source
            assert item.text.endswith(".")


@pytest.mark.parametrize("columns", [60, 100])
def test_the_command_prints_it_in_words(small_trace, columns):
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["advise", str(small_trace)])
    assert done.exit_code == 0
    with lsmooth.Trace(small_trace) as trace:
        report = advise(trace)
    words = " ".join(done.output.split())
    for item in report.advice:
        for text in (item.text, item.formula, item.source):
            assert " ".join(text.split()) in words
    assert "Nothing about theorem 1: the noise" in words
    assert max(map(len, done.output.splitlines())) <= columns


def test_the_command_prints_json(tmp_path):
    path = tmp_path / "run.h5"
    traced(path, probes=3).close()
    done = CliRunner().invoke(main, ["advise", str(path), "--json"])
    found = json.loads(done.output, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [item["name"] for item in found["advice"]][-1] == "theorem 1"
    assert math.isfinite(found["advice"][-1]["values"]["lr"])
    assert found["left_out"] == {}


def test_the_command_refuses_what_is_not_there(tmp_path):
    done = CliRunner().invoke(main, ["advise", str(tmp_path / "none.h5")])
    assert done.exit_code == 1
    assert done.output.startswith("Error: There is no file")
    assert CliRunner().invoke(main, ["advise", "x", "--beta2", "1"]).exit_code == 2
