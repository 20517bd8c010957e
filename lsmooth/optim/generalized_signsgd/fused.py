"""Torch's fused Adam kernel, made to do the arithmetic of generalized SignSGD."""

from __future__ import annotations

import torch
from torch import Tensor

from lsmooth.errors import InvalidArgumentError
from lsmooth.optim.generalized_signsgd.hyperparameters import Hyperparameters, Tensors
from lsmooth.optim.generalized_signsgd.single_tensor import single_tensor_signsgd
from lsmooth.optim.tensors import KERNEL_DEVICES, kinds, lie_alike, on_device

# bias_correction2 = 1 - beta2^step is 1 in float32 from this step on, for every beta2 < 1 that is not 1 in float32.
_NO_CORRECTION = 1e30


def kernel_takes(params: list[Tensor]) -> bool:
    """Say whether torch's fused kernels take all of some parameters."""
    devices, dtypes = kinds(params)
    return all(device.type in KERNEL_DEVICES for device in devices) and all(dtype.is_floating_point for dtype in dtypes)


def fused_signsgd(tensors: Tensors, hyper: Hyperparameters) -> None:
    """Update with torch's fused Adam kernel, which is given m as its gradient.

    Adam's own first moment then has beta1 = 0 and is m again. Its second moment averages m², as Algorithm 1 does. Its
    update is lr m / (√(v / (1 - beta2^t)) + eps), where t is so large that beta2^t vanishes. m itself is brought up
    to date first, in place: nothing is allocated. Equal to the single-tensor form up to rounding, for eps > 0.
    """
    if hyper.differentiable:
        raise InvalidArgumentError("`fused` does not support `differentiable`; leave fused unset.")
    # The kernel reads tensors in the order of their memory. A tensor with gaps, say, has to be walked.
    read = [i for i, (p, _, m, v, _) in enumerate(zip(*tensors, strict=True)) if lie_alike(p, m, v)]
    if len(read) < len(tensors.params):
        single_tensor_signsgd(tensors.chosen(sorted(set(range(len(tensors.params))) - set(read))), hyper)
        tensors = tensors.chosen(read)
    for step, alike in tensors.alike(hyper.bias_correction):
        _average(alike, hyper)
        _descend(alike, step, hyper)


def _average(tensors: Tensors, hyper: Hyperparameters) -> None:
    """Bring m up to date."""
    if hyper.maximize:
        torch._foreach_mul_(tensors.exp_avgs, hyper.beta1)
        torch._foreach_add_(tensors.exp_avgs, tensors.grads, alpha=hyper.beta1 - 1)
    else:
        torch._foreach_lerp_(tensors.exp_avgs, tensors.grads, 1 - hyper.beta1)
    if hyper.weight_decay != 0 and not hyper.decoupled_weight_decay:
        torch._foreach_add_(tensors.exp_avgs, tensors.params, alpha=hyper.weight_decay * (1 - hyper.beta1))


def _descend(tensors: Tensors, step: int, hyper: Hyperparameters) -> None:
    """Bring v up to date and step, in the kernel."""
    device = tensors.params[0].device
    count = torch.full((), step if hyper.bias_correction else _NO_CORRECTION, dtype=torch.float32, device=device)
    correction, _ = hyper.corrections(step, device)
    assert not isinstance(correction, Tensor)  # torch.compile is given the multi-tensor form
    kernel = torch._fused_adamw_ if hyper.decoupled_weight_decay else torch._fused_adam_
    kernel(
        tensors.params,
        tensors.exp_avgs,
        tensors.exp_avgs,
        tensors.exp_avg_sqs,
        [],
        [count] * len(tensors.params),
        amsgrad=False,
        lr=on_device(hyper.lr, device) / correction,
        beta1=0.0,
        beta2=hyper.beta2,
        # The kernel multiplies its weight decay by its lr, which carries the correction of m.
        weight_decay=hyper.weight_decay * correction if hyper.decoupled_weight_decay else 0.0,
        eps=hyper.eps,
        maximize=False,
    )
