"""Theorem 1, Lemma 1 and the lower bound, against sums, simulations and closed forms."""

import math

import numpy as np
import pytest
import torch
from older_format import rewrite_as

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.optim import GeneralizedSignSGD
from lsmooth.theory import (
    _Algorithm1,
    descent_check,
    flat,
    gd_lower_bound,
    lower_bound_experiment,
    steep,
    theorem1,
)
from lsmooth.trace.layout import FORMAT_VERSION

# --- Theorem 1 ---


def test_hyperparameters_are_the_formulas():
    result = theorem1(L0=[1.0, 3.0], L1=[0.1, 0.2], sigma=[2.0, 3.0], delta=9.0, steps=10_000, beta2=0.5)
    assert result.alpha == pytest.approx(math.sqrt(4 * 9) / (5 * 100))
    assert result.beta1 == pytest.approx(1 - 0.012)
    assert result.rho == pytest.approx(1 - math.sqrt(0.5) / 0.988)
    assert result.lr == pytest.approx(math.sqrt(9 * 0.012 / (4 * 10_000)))


def test_without_noise_there_is_no_momentum():
    result = theorem1(L0=1.0, L1=0.0, sigma=0.0, delta=4.0, steps=100)
    assert (result.alpha, result.beta1, result.rho) == (1.0, 0.0, 1.0)
    assert result.lr == pytest.approx(0.2)
    # SignSGD on an L-smooth function: 2 (delta/(lr T) + 4.5 lr L0), by hand.
    assert result.terms["optimization"] == pytest.approx(2 * (4 / 20 + 4.5 * 0.2))
    assert result.terms["noise"] == 0


@pytest.mark.parametrize("beta2", [0.0, 0.3, 0.9])
def test_constants_are_the_sums_that_the_proof_has(beta2):
    """W and K from their series, not from their closed forms."""
    k = np.arange(5000)
    weights = math.sqrt(1 - beta2) * np.sqrt(beta2) ** k
    width, lag, largest = weights.sum(), (k * weights).sum(), 1 / math.sqrt(1 - beta2)
    result = theorem1(
        L0=[2.0] * 3, L1=[0.5, 0.1, 0.0], sigma=0.7, delta=5.0, steps=10_000, beta2=beta2, first_gradient=11.0
    )
    error = 3 / width + largest
    for alpha, expected in ((result.alpha, None), (1.0, "limit")):
        curvature = (error / alpha + lag / width**2) * largest + largest**2 / 2
        if expected is None:
            optimization = 2 * width * (5 / (result.lr * 10_000) + result.lr * curvature * 6)
            assert result.terms["optimization"] == pytest.approx(optimization)
        else:
            c = 4 * width**2 * curvature**2 * 3 * 5 * 0.25 / 6
            assert result.least_steps_without_noise == pytest.approx(c)
            assert result.least_steps_with_noise == pytest.approx(c**2 * 2.1**2 / (6 * 5))
    assert result.terms["noise"] == pytest.approx(2 * width * error * math.sqrt(result.alpha) * 2.1)
    assert result.terms["start"] == pytest.approx(2 * width * error * 11 / (result.alpha * 10_000))


def test_the_inequality_that_the_proof_rests_on():
    """-g u <= -|g|/W + E/W² + |m - g| (1/W + U), for any moments and any gradient."""
    generator = np.random.default_rng(0)
    closest = math.inf
    for beta2 in (0.0, 0.2, 0.9, 0.99):
        for _ in range(300):
            m = generator.normal(size=20) * generator.choice([0.01, 1, 1], size=20)
            g = m[-1] + generator.normal() * generator.choice([0.0, 0.1, 2.0])
            k = np.arange(20)[::-1]
            weights = math.sqrt(1 - beta2) * math.sqrt(beta2) ** k
            v = (1 - beta2) * (beta2**k * m**2).sum()
            width, largest = math.sqrt(1 - beta2) / (1 - math.sqrt(beta2)), 1 / math.sqrt(1 - beta2)
            spread = (weights * np.abs(m - m[-1])).sum()
            right = -abs(g) / width + spread / width**2 + abs(m[-1] - g) * (1 / width + largest)
            left = -g * m[-1] / math.sqrt(v)
            assert left <= right + 1e-12
            closest = min(closest, right - left)
    assert closest < 1e-9  # at beta2 = 0 without error it holds with equality


def problem(kind, d=5):
    """Gradient, L0, L1 and delta of a function of d variables, by Assumption 2."""
    curvatures = np.linspace(0.5, 2.0, d)
    if kind == "quadratic":
        x0 = np.linspace(-2, 3, d)
        return x0, lambda x: curvatures * x, math.sqrt(d) * curvatures, np.zeros(d), (curvatures * x0**2).sum() / 2
    x0 = np.linspace(1.5, 3, d)
    # |f'(y) - f'(x)| <= e max(L0, L1 |f'(x)|) |y - x| for |y - x| <= 1/L1.
    value = sum(float(steep(x, c, 1.0)[0]) for x, c in zip(x0, curvatures, strict=True))

    def gradient(x):
        return np.array([float(steep(z, c, 1.0)[1]) for z, c in zip(x, curvatures, strict=True)])

    return x0, gradient, math.e * math.sqrt(d) * curvatures, np.full(d, math.e), value


@pytest.mark.parametrize("beta2", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["quadratic", "steep"])
def test_the_bound_holds_in_simulation(kind, beta2):
    x0, gradient, L0, L1, delta = problem(kind)
    sigma, steps = 0.5, 2000
    result = theorem1(L0, L1, sigma, delta, steps, beta2, first_gradient=np.abs(gradient(x0)).sum())
    if kind == "steep":
        # Within the reach of Assumption 2 all the same, whatever the theorem asks for.
        assert result.lr * math.sqrt(len(x0)) / math.sqrt(1 - beta2) <= 1 / L1.max()
    else:
        assert result.holds
        assert result.bound == pytest.approx(sum(result.terms.values()))
    means = []
    for seed in range(3):
        generator = np.random.default_rng(seed)
        step, x, total = _Algorithm1(result.lr, (result.beta1, beta2)), x0.copy(), 0.0
        for _ in range(steps):
            true = gradient(x)
            total += np.abs(true).sum()
            x = x - step(true + sigma * generator.normal(size=len(x0)))
        means.append(total / steps)
    assert np.mean(means) <= sum(result.terms.values())


def test_the_least_number_of_steps_is_where_the_condition_on_lr_begins_to_hold():
    arguments = {"L0": [3.0] * 4, "L1": 0.3, "delta": 2.0}
    for sigma, beta2, binding in ((0.0, 0.0, "noiseless"), (4.0, 0.0, "noise"), (4.0, 0.1, "noise")):
        least = theorem1(sigma=sigma, steps=10**9, beta2=beta2, **arguments).least_steps
        below = theorem1(sigma=sigma, steps=int(least * 0.99), beta2=beta2, **arguments)
        above = theorem1(sigma=sigma, steps=math.ceil(least), beta2=beta2, **arguments)
        assert (below.holds, above.holds) == (False, True)
        assert below.bound == math.inf
        assert above.binding == binding
        width = math.sqrt(1 - beta2) / (1 - math.sqrt(beta2))
        largest = 1 / math.sqrt(1 - beta2)
        error = 3 / width + largest
        lag = width * math.sqrt(beta2) / (1 - math.sqrt(beta2))
        at_one = (error + lag / width**2) * largest + largest**2 / 2
        assert above.lr * at_one / above.alpha * math.sqrt(4) * 0.3 == pytest.approx(1 / (2 * width), rel=3e-2)


def test_counts_stand_for_repeated_coordinates():
    whole = theorem1(L0=[1, 1, 2], L1=[0.1, 0.1, 0.3], sigma=[1, 1, 5], delta=1.0, steps=1000)
    counted = theorem1(L0=[1, 2], L1=[0.1, 0.3], sigma=[1, 5], counts=[2, 1], delta=1.0, steps=1000)
    assert whole.terms == pytest.approx(counted.terms)
    assert (whole.lr, whole.least_steps) == pytest.approx((counted.lr, counted.least_steps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta2": 0.99}, "breaks √beta2 / beta1 < 1: beta1 is 0.9"),
        ({"beta2": 0.5, "sigma": 0.0}, "breaks"),
        ({"beta2": 1.0}, "beta2=1.0 must be"),
        ({"L0": 0.0}, "L0 is 0 in every coordinate"),
        ({"L1": [-1.0]}, "Every entry of L1"),
        ({"sigma": math.nan}, "Every entry of sigma"),
        ({"L0": [1.0, 2.0], "L1": [1.0, 2.0, 3.0]}, "as long as each other"),
        ({"delta": 0.0}, "delta=0.0 must be above 0"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"first_gradient": -1.0}, "first_gradient=-1.0"),
    ],
)
def test_theorem1_refuses(change, message):
    arguments = {"L0": 1.0, "L1": 0.1, "sigma": 1.0, "delta": 1.0, "steps": 100, "beta2": 0.0}
    with pytest.raises(InvalidArgumentError, match=message):
        theorem1(**(arguments | change))


# --- Lemma 1 ---


def traced(path, loss, start, lr, steps=12, **arguments):
    """Train one vector in float64 on a loss of it, every step measured."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.x = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with lsmooth.Recorder(model, optimizer, path, **arguments) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            recorder.backward(lambda: loss(model.x))
            optimizer.step()
    return lsmooth.Trace(path)


def test_on_a_parabola_prediction_and_change_agree(tmp_path):
    trace = traced(tmp_path / "run.h5", lambda x: 1.5 * x.square().sum(), [1.0, -2.0], 0.1)
    check = descent_check(trace, L0=3.0, L1=0.0)
    x = np.sqrt(5) * 0.7 ** np.arange(12)
    np.testing.assert_allclose(check.frame["slope"], -0.1 * (3 * x) ** 2, rtol=1e-9)
    np.testing.assert_allclose(check.frame["seen"], 1.5 * x**2 * (0.49 - 1), rtol=1e-9)
    np.testing.assert_allclose(check.frame["predicted"], check.frame["seen"], rtol=1e-9)
    assert (check.share, check.within_reach) == (1.0, 12)


def test_constants_that_are_too_small_are_found_out(tmp_path):
    trace = traced(tmp_path / "run.h5", lambda x: 1.5 * x.square().sum(), [1.0, -2.0], 0.1)
    assert descent_check(trace, L0=2.9, L1=0.0).share == 0.0
    assert descent_check(trace, L0=2.9, L1=0.5).share > 0


def test_steps_out_of_reach_do_not_count(tmp_path):
    trace = traced(tmp_path / "run.h5", lambda x: 1.5 * x.square().sum(), [1.0, -2.0], 0.1)
    check = descent_check(trace, L0=0.0, L1=5.0)
    moved = 0.3 * np.sqrt(5) * 0.7 ** np.arange(12)
    np.testing.assert_allclose(check.frame["reach"], 5 * moved, rtol=1e-6)
    assert check.within_reach == (5 * moved <= 1).sum() < 12
    assert math.isnan(descent_check(trace, L0=0.0, L1=1e9).share)


@pytest.mark.parametrize(("recorded", "rel"), [(True, 1e-12), (False, 1e-7)])
def test_the_slope_of_a_quartic_is_exact_recorded_or_fitted(tmp_path, recorded, rel):
    trace = traced(tmp_path / "run.h5", lambda x: (x**4).sum() - x.sum(), [1.0, -0.5], 0.05, steps=5)
    if not recorded:
        rewrite_as(trace.path, "1.0")
        trace.refresh()
    assert trace.has("slope") == recorded
    check = descent_check(trace, L0=50.0, L1=0.0)
    x = np.array([1.0, -0.5])
    for slope in check.frame["slope"]:
        g = 4 * x**3 - 1
        assert slope == pytest.approx(-0.05 * (g**2).sum(), rel=rel)
        x = x - 0.05 * g


def test_a_recorded_slope_needs_no_smooth_losses_between(tmp_path):
    trace = traced(tmp_path / "run.h5", lambda x: (40 * x).cos().sum() + x.abs().sum(), [1.0, -0.5], 0.02, steps=5)
    check = descent_check(trace, L0=1600.0, L1=0.0)
    x = np.array([1.0, -0.5])
    for slope in check.frame["slope"]:
        g = -40 * np.sin(40 * x) + np.sign(x)
        assert slope == pytest.approx(-0.02 * (g**2).sum(), rel=1e-10)
        x = x - 0.02 * g


def test_a_continued_trace_of_format_1_0_has_slopes_from_then_on(tmp_path):
    def run(**arguments):
        return traced(tmp_path / "run.h5", lambda x: 1.5 * x.square().sum(), [1.0, -2.0], 0.1, steps=40, **arguments)

    run().close()
    rewrite_as(tmp_path / "run.h5", "1.0")
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.metadata["format_version"] == "1.0"
        assert not trace.has("slope")
    with run(mode="a") as trace:
        assert trace.metadata["format_version"] == FORMAT_VERSION
        assert np.isnan(trace.read("slope")[:40]).all()
        x = np.sqrt(5) * 0.7 ** np.arange(40)
        np.testing.assert_allclose(trace.read("slope")[40:], -0.1 * (3 * x) ** 2, rtol=1e-9)
        # Rows without a slope have theirs fitted.
        np.testing.assert_allclose(
            descent_check(trace, L0=3.0, L1=0.0).frame["slope"][:40], -0.1 * (3 * x) ** 2, rtol=1e-6
        )


def test_fitted_constants_hold_along_a_real_run(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        check = descent_check(trace)
        norms = trace.read("grad_norm").astype(float), trace.read("step_norm").astype(float)
        exact = -(norms[0] * norms[1]).sum(axis=1)
    # The run is SGD without momentum, clipped: d points against the gradient.
    np.testing.assert_allclose(check.frame["slope"], exact[trace.status == 1], rtol=0.02)
    assert check.within_reach > 0
    assert check.share > 0.95


def test_descent_check_refuses(tmp_path, small_trace):
    trace = traced(tmp_path / "run.h5", lambda x: x.square().sum(), [1.0], 0.1, steps=3, endpoint=False)
    with pytest.raises(TraceError, match="without the endpoint"):
        descent_check(trace)
    with lsmooth.Trace(small_trace) as trace:
        with pytest.raises(InvalidArgumentError, match="belong together"):
            descent_check(trace, L0=1.0)
        with pytest.raises(InvalidArgumentError, match="at least 0"):
            descent_check(trace, L0=1.0, L1=-1.0)
    short = traced(tmp_path / "short.h5", lambda x: x.square().sum(), [1.0], 0.1, steps=3)
    with pytest.raises(TraceError, match="cannot be fitted"):
        descent_check(short)


# --- the lower bound ---


@pytest.mark.parametrize(("L0", "L1"), [(1.0, 1.0), (0.3, 2.0), (5.0, 0.1)])
def test_both_functions_are_what_they_claim(L0, L1):
    x = np.linspace(-6 / L1, 6 / L1, 4001)
    for value, derivative in (steep(x, L0, L1), flat(x, 0.7, L0)):
        middle = (derivative[1:] + derivative[:-1]) / 2
        np.testing.assert_allclose(np.diff(value) / np.diff(x), middle, rtol=1e-3, atol=0.02)
        bent = np.abs(np.diff(derivative) / np.diff(x))
        assert (bent <= (L0 + L1 * np.maximum(np.abs(derivative[1:]), np.abs(derivative[:-1]))) * (1 + 1e-6)).all()
        assert value[len(x) // 2] == value.min() == 0
    assert steep(1 / L1, L0, L1)[1] == pytest.approx(L0 / L1)
    M = 50 * L0 / L1
    start = (1 + math.log(50)) / L1
    assert steep(start, L0, L1)[1] == pytest.approx(M)
    assert steep(start, L0, L1)[0] == pytest.approx(M / L1 - L0 / (2 * L1**2))


def plain_gradient_descent(derivative, x, lr, epsilon, most):
    for iteration in range(most):
        g = float(derivative(x))
        if abs(g) <= epsilon:
            return iteration
        x -= lr * g
        if abs(x) > 1e6:
            break
    return math.inf


@pytest.mark.parametrize("M", [3.0, 20.0])
def test_no_constant_step_beats_the_bound(M):
    L0, L1, epsilon, delta = 1.0, 1.5, 0.4, 30.0
    bound = gd_lower_bound(L0, L1, M, delta, epsilon)
    slope = epsilon * (1 + 1e-6)
    starts = (1 + math.log(M * L1 / L0)) / L1, delta / slope + slope / (2 * L0)
    counts = []
    for lr in np.geomspace(0.02, 10, 40):
        worst = max(
            plain_gradient_descent(lambda x: steep(x, L0, L1)[1], starts[0], lr, epsilon, int(3 * bound)),
            plain_gradient_descent(lambda x: flat(x, slope, L0)[1], starts[1], lr, epsilon, int(3 * bound)),
        )
        assert worst >= bound * (1 - 1e-5)
        counts.append(worst)
    assert min(counts) < 1.3 * bound


def test_gradient_descent_grows_with_m_and_signsgd_does_not():
    frame = lower_bound_experiment((4, 16, 64), epsilon=0.5)
    descent = frame[frame["optimizer"] == "gradient descent"]
    signs = frame[frame["optimizer"] == "generalized SignSGD"]
    assert (descent["iterations"] >= descent["bound"] * (1 - 1e-5)).all()
    assert (descent["iterations"] <= 1.02 * descent["bound"]).all()
    assert descent["iterations"].iloc[-1] > 5 * descent["iterations"].iloc[0]
    assert signs["iterations"].nunique() == 1
    # lr = epsilon/L0: the distance on `flat` over lr, M not in it.
    assert signs["iterations"].iloc[0] == pytest.approx(64 / 0.5 / 0.5, rel=0.03)


@pytest.mark.parametrize("betas", [(0.9, 0.5), (0.0, 0.0), (0.9, 0.0)])
def test_the_experiments_algorithm_1_is_the_optimizer(betas):
    x = np.array([2.0, -1.0, 0.0])
    p = torch.nn.Parameter(torch.tensor(x))
    step, optimizer = _Algorithm1(0.03, betas), GeneralizedSignSGD([p], lr=0.03, betas=betas, eps=0.0)
    for _ in range(40):
        p.grad = p.detach().sin()
        optimizer.step()
        x = x - step(np.sin(x))
        np.testing.assert_allclose(p.detach(), x, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"L1": 0.0}, "L1=0.0 must be above 0"),
        ({"M": 0.5}, "M=0.5 must be at least L0/L1 = 1"),
        ({"epsilon": 20.0}, "above epsilon"),
        ({"delta": 5.0}, "delta=5 must be at least 9.5"),
        ({"epsilon": math.inf}, "epsilon=inf"),
    ],
)
def test_gd_lower_bound_refuses(change, message):
    arguments = {"L0": 1.0, "L1": 1.0, "M": 10.0, "delta": 10.0, "epsilon": 0.1}
    with pytest.raises(InvalidArgumentError, match=message):
        gd_lower_bound(**(arguments | change))


def test_the_experiment_refuses():
    with pytest.raises(InvalidArgumentError, match="at least one"):
        lower_bound_experiment(())
    with pytest.raises(InvalidArgumentError, match=r"M=0\.1"):
        lower_bound_experiment((0.1, 4.0))


def test_theory_does_not_import_torch():
    import subprocess
    import sys

    script = "import sys, lsmooth.theory as t; t.lower_bound_experiment((2, 4)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
