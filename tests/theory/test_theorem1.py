"""Theorem 1 against sums, and against simulations."""

import math

import numpy as np
import pytest

from lsmooth.errors import InvalidArgumentError
from lsmooth.theory import steep, theorem1
from lsmooth.theory.lower_bound import _Algorithm1


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
