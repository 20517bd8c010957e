"""All tensors of a device together, by torch's `_foreach` kernels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lsmooth.errors import InvalidArgumentError
from lsmooth.optim.momentum.directions import Directions, Hyperparameters
from lsmooth.optim.tensors import KERNEL_DEVICES, by_device_and_dtype, lie_alike


def advance_multi_tensor(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None], hyper: Hyperparameters
) -> Directions:
    """Update momentum buffers, in place in the list too, and return the directions along gradient and momentum."""
    if hyper.differentiable:
        raise InvalidArgumentError("`foreach` does not support `differentiable`; leave foreach unset.")
    gradients: list[Tensor] = list(grads)
    directions: list[Tensor] = list(grads)
    for p, g, held, positions in by_device_and_dtype(params, grads, buffers, range(len(params))):
        if hyper.maximize:
            g = list(torch._foreach_neg(g))
        if hyper.weight_decay != 0:
            g = list(torch._foreach_add(g, p, alpha=hyper.weight_decay))
        d = g
        if hyper.momentum != 0:
            d = _averaged(g, held, hyper)
            for position, buffer in zip(positions, d, strict=True):
                buffers[position] = buffer
            if hyper.nesterov:
                d = list(torch._foreach_add(g, d, alpha=hyper.momentum))
        if len(g) == len(grads):
            return Directions(g, d)
        for position, gradient, direction in zip(positions, g, d, strict=True):
            gradients[position], directions[position] = gradient, direction
    return Directions(gradients, directions)


def _averaged(g: list[Tensor], held: Sequence[Tensor | None], hyper: Hyperparameters) -> list[Tensor]:
    """Update the momentum buffers that exist, start the others at the gradient, and return all."""
    old = [buffer for buffer in held if buffer is not None]
    if old:
        arrived = g if len(old) == len(g) else [g[i] for i, buffer in enumerate(held) if buffer is not None]
        torch._foreach_mul_(old, hyper.momentum)
        torch._foreach_add_(old, arrived, alpha=1 - hyper.dampening)
    return [torch.clone(g[i]).detach() if buffer is None else buffer for i, buffer in enumerate(held)]


def descend_multi_tensor(params: list[Tensor], directions: list[Tensor], scale: Tensor) -> None:
    """Step by -scale times the direction, all tensors of a device together."""
    for p, d in by_device_and_dtype(params, directions):
        device, dtype = p[0].device, p[0].dtype
        # torch's fused SGD kernel takes its lr from the device, in one pass and without a copy; as float32, though.
        if (
            device.type in KERNEL_DEVICES
            and dtype in (torch.float32, torch.bfloat16, torch.float16)
            and (all(map(Tensor.is_contiguous, itertools.chain(p, d))) or all(map(lie_alike, p, d)))
        ):
            torch._fused_sgd_(
                p,
                d,
                [],
                weight_decay=0.0,
                momentum=0.0,
                lr=scale.to(device, torch.float32, non_blocking=True),
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
        else:
            torch._foreach_sub_(p, torch._foreach_mul(d, scale.to(device, dtype, non_blocking=True)))
