"""Every optimizer against ten lines of NumPy, in float64, over 100 steps."""

import numpy as np
import pytest
import torch

from lsmooth import optim
from lsmooth.optim import GeneralizedSignSGD, SGDClip, SGDNormalized

SHAPES = [(5, 4), (7,), (), (2, 3, 2)]
STEPS = 100


def start():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in SHAPES]


def gradient(position, step, x):
    """Gradients that depend on where one is, change sign, and span orders of magnitude between tensors."""
    rng = np.random.default_rng(1000 * position + step)
    return 10.0 ** (2 * position - 3) * (np.sin(3 * x) + 0.5 * x + rng.normal(size=x.shape))


def iterates(cls, dtype=torch.float64, steps=STEPS, scale=1.0, groups=None, **arguments):
    params = [torch.nn.Parameter(torch.tensor(x, dtype=dtype)) for x in start()]
    optimizer = cls(params if groups is None else groups(params), **arguments)
    for step in range(steps):
        for position, p in enumerate(params):
            g = scale * gradient(position, step, p.detach().double().numpy())
            p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
    return [p.detach().double().numpy() for p in params]


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


def reference_momentum(scale, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, nu=1.0, maximize=False):
    xs, ms = start(), [None] * len(SHAPES)
    for step in range(STEPS):
        gs = [gradient(i, step, x) * (-1 if maximize else 1) + weight_decay * x for i, x in enumerate(xs)]
        ms = [g if m is None else momentum * m + (1 - dampening) * g for g, m in zip(gs, ms, strict=True)]
        ds = [g + momentum * m for g, m in zip(gs, ms, strict=True)] if nesterov else ms
        norm_d, norm_g = (np.sqrt(sum((t**2).sum() for t in ts)) for ts in (ds, gs))
        xs = [x - nu * scale(norm_d) * d - (1 - nu) * scale(norm_g) * g for x, d, g in zip(xs, ds, gs, strict=True)]
    return xs


def assert_close(got, expected, tolerance=1e-12):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


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


MOMENTUM_SETTINGS = {
    "plain": {},
    "heavy ball": {"momentum": 0.9},
    "moving average": {"momentum": 0.9, "dampening": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"momentum": 0.8, "weight_decay": 0.1},
    "maximize": {"momentum": 0.8, "weight_decay": 0.1, "maximize": True},
}
# About where half of the steps are clipped.
MAX_NORM = {"plain": 0.37, "heavy ball": 0.5, "moving average": 0.25, "nesterov": 0.5, "decay": 0.5, "maximize": 0.8}


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("setting", MOMENTUM_SETTINGS)
@pytest.mark.parametrize("nu", [0.0, 0.7, 1.0])
def test_sgd_clip_against_numpy(setting, nu, foreach):
    arguments = MOMENTUM_SETTINGS[setting]
    got = iterates(SGDClip, lr=1e-4, max_norm=MAX_NORM[setting], nu=nu, foreach=foreach, **arguments)
    assert_close(got, reference_momentum(lambda norm: min(1e-4, MAX_NORM[setting] / norm), nu=nu, **arguments))


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("setting", MOMENTUM_SETTINGS)
def test_sgd_normalized_against_numpy(setting, foreach):
    arguments = {"momentum": 0.0, **MOMENTUM_SETTINGS[setting]}
    got = iterates(SGDNormalized, lr=0.03, foreach=foreach, **arguments)
    assert_close(got, reference_momentum(lambda norm: 0.03 / norm, **arguments))


@pytest.mark.parametrize("setting", MOMENTUM_SETTINGS)
def test_the_reference_clips_at_some_steps_and_not_at_others(setting):
    """Otherwise the comparison above would not tell clipping from its absence."""
    clipped = []

    def scale(norm):
        clipped.append(norm > MAX_NORM[setting] / 1e-4)
        return min(1e-4, MAX_NORM[setting] / norm)

    reference_momentum(scale, **MOMENTUM_SETTINGS[setting])
    assert 0.1 < np.mean(clipped) < 0.9


@pytest.mark.parametrize("name", optim.NAMES)
def test_every_name_builds_and_takes_what_it_says(name):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.build(name, [p], **optim.hyperparameters(name))
    p.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    assert p[0] < 1 < p[1]
