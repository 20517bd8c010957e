"""One tensor after another: the plain form, which the other backends are tested against."""

from __future__ import annotations

from torch import Tensor

from lsmooth.optim.generalized_signsgd.hyperparameters import Hyperparameters, Tensors, least_root
from lsmooth.optim.tensors import on_device


def single_tensor_signsgd(tensors: Tensors, hyper: Hyperparameters) -> None:
    """Update one tensor after another."""
    for p, grad, exp_avg, exp_avg_sq, step in zip(*tensors, strict=True):
        rate = hyper.lr if hyper.differentiable else on_device(hyper.lr, p.device)
        if hyper.maximize:
            grad = -grad
        if hyper.weight_decay != 0:
            if hyper.decoupled_weight_decay:
                p.mul_(1 - rate * hyper.weight_decay)
            else:
                grad = grad.add(p, alpha=hyper.weight_decay)
        exp_avg.lerp_(grad, 1 - hyper.beta1)
        # Autograd must find m as it was here, and the next step overwrites it.
        m = exp_avg.clone() if hyper.differentiable else exp_avg
        if hyper.bias_correction:
            rate = rate / hyper.corrections(step, p.device)[0]
        if hyper.beta2 == 0 and hyper.eps == 0:
            p.sub_(m.sign() * rate)
            continue
        denominator = _denominator(m, exp_avg_sq, step, hyper)
        if isinstance(rate, Tensor):
            p.sub_(m / denominator * rate)
        else:
            p.addcdiv_(m, denominator, value=-rate)


def _denominator(m: Tensor, exp_avg_sq: Tensor, step: int, hyper: Hyperparameters) -> Tensor:
    """Bring v up to date and return √v + eps, or √v above its lower bound where eps = 0."""
    if hyper.beta2 == 0:
        root = m.abs()
    else:
        exp_avg_sq.mul_(hyper.beta2).addcmul_(m, m, value=1 - hyper.beta2)
        root = exp_avg_sq.sqrt()
        if hyper.bias_correction:
            root = root / hyper.corrections(step, m.device)[1]
    return root + hyper.eps if hyper.eps != 0 else root.clamp(min=least_root(m.dtype))
