"""All tensors of a device together, an operation at a time, by torch's `_foreach` kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from lsmooth.errors import InvalidArgumentError
from lsmooth.optim.generalized_signsgd.hyperparameters import Hyperparameters, Tensors, least_root
from lsmooth.optim.tensors import blocks, on_device


def multi_tensor_signsgd(tensors: Tensors, hyper: Hyperparameters) -> None:
    """Update all tensors of a device together.

    On a GPU this takes as much further memory as the parameters. On the CPU it goes through them in blocks.
    """
    if hyper.differentiable:
        raise InvalidArgumentError("`foreach` does not support `differentiable`; leave foreach unset.")
    for step, alike in tensors.alike(hyper.bias_correction):
        rate = on_device(hyper.lr, alike.params[0].device)
        step_rate = rate / hyper.corrections(step, alike.params[0].device)[0] if hyper.bias_correction else rate
        for p, g, m, v in blocks(alike[:4]):
            if hyper.weight_decay != 0 and hyper.decoupled_weight_decay:
                torch._foreach_mul_(p, 1 - rate * hyper.weight_decay)
            if hyper.maximize:
                g = list(torch._foreach_neg(g))
            if hyper.weight_decay != 0 and not hyper.decoupled_weight_decay:
                g = list(torch._foreach_add(g, p, alpha=hyper.weight_decay))
            torch._foreach_lerp_(m, g, 1 - hyper.beta1)
            if hyper.beta2 == 0 and hyper.eps == 0:
                _descend_signs(p, m, step_rate)
            else:
                _descend(p, m, _denominators(m, v, step, hyper), step_rate)


def _denominators(m: list[Tensor], v: list[Tensor], step: int, hyper: Hyperparameters) -> list[Tensor]:
    """Bring v up to date and return √v + eps, or √v above its lower bound where eps = 0."""
    if hyper.beta2 == 0:
        roots = list(torch._foreach_abs(m))
    else:
        torch._foreach_mul_(v, hyper.beta2)
        torch._foreach_addcmul_(v, m, m, value=1 - hyper.beta2)
        roots = list(torch._foreach_sqrt(v))
        if hyper.bias_correction:
            torch._foreach_div_(roots, hyper.corrections(step, m[0].device)[1])
    if hyper.eps == 0:
        torch._foreach_clamp_min_(roots, least_root(m[0].dtype))
    else:
        torch._foreach_add_(roots, hyper.eps)
    return roots


def _descend(p: list[Tensor], m: list[Tensor], denominators: list[Tensor], rate: float | Tensor) -> None:
    """Step by -rate m / denominator; denominators are overwritten."""
    if isinstance(rate, Tensor):
        torch._foreach_div_(denominators, -rate)
        torch._foreach_addcdiv_(p, m, denominators)
    else:
        torch._foreach_addcdiv_(p, m, denominators, value=-rate)


def _descend_signs(p: list[Tensor], m: list[Tensor], rate: float | Tensor) -> None:
    """Step by -rate sign(m)."""
    signs = list(torch._foreach_sign(m))
    if isinstance(rate, Tensor):
        torch._foreach_mul_(signs, rate)
        torch._foreach_sub_(p, signs)
    else:
        torch._foreach_add_(p, signs, alpha=-rate)
