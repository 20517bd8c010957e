"""Iterates of an optimizer, and the start and gradients that a NumPy reference takes, too."""

import numpy as np
import torch

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


def assert_close(got, expected, tolerance=1e-12):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
