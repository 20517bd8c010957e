"""Clipping and normalizing against ten lines of NumPy, in float64, over 100 steps."""

import numpy as np
import pytest
import torch
from numpy_steps import SHAPES, STEPS, assert_close, gradient, iterates, start
from optimizers import SETTINGS, run, set_gradients, weights
from torch.utils._python_dispatch import TorchDispatchMode

from lsmooth.optim import SGDClip, SGDNormalized


def reference_momentum(scale, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, nu=1.0, maximize=False):
    xs, ms = start(), [None] * len(SHAPES)
    for step in range(STEPS):
        gs = [gradient(i, step, x) * (-1 if maximize else 1) + weight_decay * x for i, x in enumerate(xs)]
        ms = [g if m is None else momentum * m + (1 - dampening) * g for g, m in zip(gs, ms, strict=True)]
        ds = [g + momentum * m for g, m in zip(gs, ms, strict=True)] if nesterov else ms
        norm_d, norm_g = (np.sqrt(sum((t**2).sum() for t in ts)) for ts in (ds, gs))
        xs = [x - nu * scale(norm_d) * d - (1 - nu) * scale(norm_g) * g for x, d, g in zip(xs, ds, gs, strict=True)]
    return xs


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


@pytest.mark.parametrize("setting", ["clip", "clip single", "normalized", "normalized single"])
def test_the_norm_is_over_all_groups(setting):
    together, apart = weights(), weights()
    whole = run(SETTINGS[setting](together), together, 4)
    groups = [{"params": [p]} for p in apart]
    for a, b in zip(run(SETTINGS[setting](groups), apart, 4), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("setting", ["clip", "clip single", "normalized", "normalized single"])
def test_nan_is_passed_on(setting):
    """A norm of NaN must not look like one that is small enough, or like one that is 0."""
    params = weights()
    optimizer = SETTINGS[setting](params)
    set_gradients(params, 0)
    params[0].grad[0, 0] = torch.nan
    optimizer.step()
    assert all(torch.isnan(p).all() for p in params)


@pytest.mark.parametrize("lr", [0.0, torch.zeros(())], ids=["number", "tensor"])
def test_no_direction_and_no_length_move_nothing(lr):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    SGDNormalized([p], lr=lr).step()
    assert p.tolist() == [1, 1, 1]


class Operations(TorchDispatchMode):
    """Lists what is dispatched, which on a GPU is launched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("setting", "scale"),
    [("clip", ["reciprocal", "mul", "clamp"]), ("normalized", ["reciprocal", "nan_to_num", "mul"])],
)
def test_a_step_is_nine_operations_whatever_the_number_of_tensors(setting, scale):
    params = [p for seed in range(5) for p in weights(torch.float32, seed)]
    optimizer = SETTINGS[setting](params, **({"nu": 1.0} if setting == "clip" else {}))
    run(optimizer, params, 1)
    set_gradients(params, 1)
    with Operations() as operations:
        optimizer.step()
    momentum, norm = ["_foreach_mul_", "_foreach_add_"], ["_foreach_norm", "stack", "linalg_vector_norm"]
    assert operations.names == [*momentum, *norm, *scale, "_fused_sgd_"]
