"""Optimizers of every kind and backend, with weights and gradients to step them."""

import pytest
import torch

from lsmooth.optim import GeneralizedSignSGD, SGDClip, SGDNormalized

SETTINGS = {
    "signsgd fused": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "fused": True} | a),
    "signsgd foreach": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "foreach": True} | a),
    "signsgd single": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "foreach": False, "fused": False} | a),
    "signsgd eps=0": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "eps": 0.0} | a),
    "signsgd corrected": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "bias_correction": True} | a),
    "signum": lambda p, **a: GeneralizedSignSGD(p, **{"lr": 1e-2, "betas": (0.9, 0.0), "eps": 0.0} | a),
    "clip": lambda p, **a: SGDClip(p, **{"lr": 0.05, "max_norm": 0.05, "momentum": 0.9, "nu": 0.7} | a),
    "clip single": lambda p, **a: SGDClip(p, **{"lr": 0.05, "max_norm": 0.05, "momentum": 0.9, "foreach": False} | a),
    "normalized": lambda p, **a: SGDNormalized(p, **{"lr": 0.05} | a),
    "normalized single": lambda p, **a: SGDNormalized(p, **{"lr": 0.05, "foreach": False} | a),
}
EVERY = pytest.mark.parametrize("setting", SETTINGS)


def weights(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in [(4, 3), (5,), ()]
    ]


def set_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = p.detach() + noise


def run(optimizer, params, steps, start=0, after=None):
    for step in range(start, start + steps):
        set_gradients(params, step)
        optimizer.step()
        if after:
            after()
    return [p.detach().clone() for p in params]


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
