"""Dtypes, memory layouts and blocks do not change steps."""

import pytest
import torch
from optimizers import EVERY, SETTINGS, run, set_gradients, weights

from lsmooth.optim import GeneralizedSignSGD


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_parameters_follow_wide_ones(setting, dtype):
    narrow = weights(dtype)
    wide = [torch.nn.Parameter(p.detach().double()) for p in narrow]
    a, b = SETTINGS[setting](narrow), SETTINGS[setting](wide)
    for step in range(3):
        set_gradients(narrow, step)
        for n, w in zip(narrow, wide, strict=True):
            w.grad = n.grad.double()
        a.step()
        b.step()
    assert all(p.dtype == dtype for p in narrow)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    for n, w in zip(narrow, wide, strict=True):
        torch.testing.assert_close(n.double(), w, rtol=tolerance, atol=tolerance)


@EVERY
def test_mixed_dtypes_in_one_group(setting):
    params = [weights(torch.float32)[0], weights()[1], weights(torch.bfloat16)[2]]
    before = [p.detach().clone() for p in params]
    run(SETTINGS[setting](params), params, 2)
    assert all(not torch.equal(p, b) for p, b in zip(params, before, strict=True))


@EVERY
@pytest.mark.parametrize("layout", ["transposed", "gaps", "gradient transposed", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_memory_layouts_do_not_matter(setting, layout, dtype):
    torch.manual_seed(0)
    value, gradients = torch.randn(3, 4, 2, 5).to(dtype), [torch.randn(3, 4, 2, 5).to(dtype) for _ in range(3)]
    change = {
        "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
        "gaps": lambda t: torch.stack([t, t], -1)[..., 0],
        "gradient transposed": lambda t: t,
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    }[layout]
    results = []
    for convert in (lambda t: t.clone(), change):
        p = torch.nn.Parameter(convert(value.clone()))
        optimizer = SETTINGS[setting]([p], weight_decay=0.1)
        for gradient in gradients:
            p.grad = gradient.clone()
            if convert is change and layout == "gradient transposed":
                p.grad = gradient.transpose(0, 3).contiguous().transpose(0, 3)
            optimizer.step()
        results.append(p.detach())
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


def test_tensors_larger_than_a_block():
    torch.manual_seed(0)
    value, gradient = torch.randn(600, 1000), torch.randn(600, 1000)
    results = []
    for backend in ({"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}):
        p = torch.nn.Parameter(value.clone())
        # Coupled decay could cancel a gradient, and what is left of it is rounding, which the root then blows up.
        optimizer = GeneralizedSignSGD([p], lr=0.1, weight_decay=0.1, decoupled_weight_decay=True, **backend)
        for _ in range(2):
            p.grad = gradient.clone()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(results[0], results[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(results[1], results[2], rtol=1e-6, atol=1e-6)
