"""The lower bound and its experiment, against plain loops and the optimizer."""

import math

import numpy as np
import pytest
import torch

from lsmooth.errors import InvalidArgumentError
from lsmooth.optim import GeneralizedSignSGD
from lsmooth.theory import flat, gd_lower_bound, lower_bound_experiment, steep
from lsmooth.theory.lower_bound import _Algorithm1


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
