"""Generalized SignSGD against ten lines of NumPy, in float64, over 100 steps; its special cases exactly."""

import copy

import numpy as np
import pytest
import torch
from numpy_steps import STEPS, assert_close, gradient, iterates, start
from optimizers import SETTINGS, run, set_gradients, weights

from lsmooth import optim
from lsmooth.optim import GeneralizedSignSGD


def reference_signsgd(
    lr, betas, eps, weight_decay=0.0, decoupled_weight_decay=False, bias_correction=False, maximize=False
):
    out = []
    for position, x in enumerate(start()):
        m = v = np.zeros_like(x)
        for step in range(STEPS):
            g = gradient(position, step, x) * (-1 if maximize else 1)
            if decoupled_weight_decay:
                x = x - lr * weight_decay * x
            else:
                g = g + weight_decay * x
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * m**2
            c1, c2 = (1 - betas[0] ** (step + 1), 1 - betas[1] ** (step + 1)) if bias_correction else (1, 1)
            x = x - lr * (m / c1) / (np.sqrt(v / c2) + eps)
        out.append(x)
    return out


SIGN_SETTINGS = {
    "default": {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8},
    "algorithm 1": {"lr": 1e-2, "betas": (0.9, 0.5), "eps": 0.0},
    "signum": {"lr": 1e-2, "betas": (0.9, 0.0), "eps": 0.0},
    "signsgd": {"lr": 1e-2, "betas": (0.0, 0.0), "eps": 0.0},
    "large eps": {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 0.3},
    "no beta2": {"lr": 1e-2, "betas": (0.9, 0.0), "eps": 0.3},
    "L2": {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1},
    "decoupled": {
        "lr": 1e-2,
        "betas": (0.9, 0.99),
        "eps": 1e-6,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
    },
    "bias correction": {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "bias_correction": True},
    "everything": {
        "lr": 1e-2,
        "betas": (0.8, 0.95),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "bias_correction": True,
        "maximize": True,
    },
    "maximize L2": {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
}
BACKENDS = {
    "default": {},
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
# The fused backend refuses eps = 0.
PAIRS = [(s, b) for s in SIGN_SETTINGS for b in BACKENDS if not (b == "fused" and SIGN_SETTINGS[s]["eps"] == 0)]


@pytest.mark.parametrize(("setting", "backend"), PAIRS)
def test_generalized_signsgd_is_algorithm_1(setting, backend):
    arguments = SIGN_SETTINGS[setting]
    got = iterates(GeneralizedSignSGD, **arguments, **BACKENDS[backend])
    assert_close(got, reference_signsgd(**arguments))


def test_a_state_of_another_backend_can_be_loaded():
    params = weights()
    optimizer = SETTINGS["signsgd fused"](params)
    run(optimizer, params, 3)
    other = [torch.nn.Parameter(p.detach().clone()) for p in params]
    single = SETTINGS["signsgd single"](other)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"] = single.state_dict()["param_groups"]
    single.load_state_dict(state)
    for a, b in zip(run(single, other, 3, 3), run(optimizer, params, 3, 3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_beta2_may_be_switched_on_and_off():
    """Without beta2 v is m² and not stored; what comes after goes on from m²."""
    params = weights()
    optimizer = GeneralizedSignSGD(params, betas=(0.9, 0.0))
    run(optimizer, params, 3)
    assert all("exp_avg_sq" not in optimizer.state[p] for p in params)
    before = [optimizer.state[p]["exp_avg"].clone() for p in params]
    optimizer.param_groups[0]["betas"] = (0.9, 0.5)
    run(optimizer, params, 1, start=3)
    for p, m in zip(params, before, strict=True):
        expected = 0.5 * m**2 + 0.5 * optimizer.state[p]["exp_avg"] ** 2
        torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("foreach", [None, False])
def test_signsgd_steps_are_signs_exactly(dtype, foreach):
    p = torch.nn.Parameter(torch.zeros(6, dtype=dtype))
    optimizer = GeneralizedSignSGD([p], lr=1.0, betas=(0.0, 0.0), eps=0.0, foreach=foreach)
    p.grad = torch.tensor([1e-30, -1e-30, 0.0, 1e30, -3.0, 5e-39], dtype=dtype)
    optimizer.step()
    assert p.tolist() == [-1, 1, 0, -1, 1, -1]


def test_signum_steps_are_signs_of_momentum_exactly():
    p = torch.nn.Parameter(torch.zeros(50))
    optimizer = optim.build("signum", [p], lr=0.5, momentum=0.9)
    m, x = torch.zeros(50), torch.zeros(50)
    for step in range(20):
        set_gradients([p], step)
        m.lerp_(p.grad, 1 - 0.9)
        x -= 0.5 * m.sign()
        optimizer.step()
        assert torch.equal(p, x)


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("beta2", [0.0, 0.9])
def test_without_eps_a_zero_moment_moves_nothing(foreach, beta2):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = GeneralizedSignSGD([p], lr=0.1, betas=(0.9, beta2), eps=0.0, foreach=foreach)
    p.grad = torch.tensor([0.0, 1.0, 0.0])
    optimizer.step()
    assert p[0] == 1
    assert p[1] < 1
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("foreach", [None, False])
def test_gradients_whose_square_underflows_do_not_leap(foreach):
    """|m| / √v <= 1 / √(1 - beta2) in exact arithmetic; 1e-25² is 0 in float32."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = GeneralizedSignSGD([p], lr=1.0, betas=(0.9, 0.99), eps=0.0, foreach=foreach)
    for exponent in (-25, -23, -22, -21, -20):
        before = p.item()
        p.grad = torch.tensor([10.0**exponent])
        optimizer.step()
        assert abs(p.item() - before) <= 1 / (1 - 0.99) ** 0.5 * 1.001


@pytest.mark.parametrize("scale", [1e3, 1e-3, 2.0**20])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.0)])
def test_without_eps_iterates_do_not_depend_on_the_scale_of_the_loss(scale, decay, betas):
    results = []
    for factor in (1.0, scale):
        params = weights()
        optimizer = GeneralizedSignSGD(
            params, lr=0.01, betas=betas, eps=0.0, weight_decay=decay, decoupled_weight_decay=True
        )
        for step in range(50):
            set_gradients(params, step)
            for p in params:
                p.grad *= factor
            optimizer.step()
        results.append([p.detach() for p in params])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_l2_decay_does_depend_on_the_scale():
    """What the test above would not notice if decay were never coupled."""
    results = []
    for factor in (1.0, 1e-3):
        params = weights()
        optimizer = GeneralizedSignSGD(params, lr=0.01, eps=0.0, weight_decay=0.1)
        for step in range(50):
            set_gradients(params, step)
            for p in params:
                p.grad *= factor
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in params]))
    assert (results[0] - results[1]).abs().max() > 1e-3
