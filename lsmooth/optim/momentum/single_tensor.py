"""One tensor after another: the plain form of both stages."""

from __future__ import annotations

import torch
from torch import Tensor

from lsmooth.optim.momentum.directions import Directions, Hyperparameters


def advance_single_tensor(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor | None], hyper: Hyperparameters
) -> Directions:
    """Update momentum buffers, in place in the list too, and return the directions along gradient and momentum."""
    gradients: list[Tensor] = []
    directions: list[Tensor] = []
    for position, (p, grad, buffer) in enumerate(zip(params, grads, buffers, strict=True)):
        if hyper.maximize:
            grad = -grad
        if hyper.weight_decay != 0:
            grad = grad.add(p, alpha=hyper.weight_decay)
        gradients.append(grad)
        if hyper.momentum == 0:
            directions.append(grad)
            continue
        if buffer is None:
            buffer = torch.clone(grad) if hyper.differentiable else torch.clone(grad).detach()
            buffers[position] = buffer
        else:
            buffer.mul_(hyper.momentum).add_(grad, alpha=1 - hyper.dampening)
        if hyper.nesterov:
            directions.append(grad.add(buffer, alpha=hyper.momentum))
        else:
            # Autograd must find the direction as it was here, and the next step overwrites the buffer.
            directions.append(buffer.clone() if hyper.differentiable else buffer)
    return Directions(gradients, directions)


def descend_single_tensor(params: list[Tensor], directions: list[Tensor], scale: Tensor) -> None:
    """Step by -scale times the direction, one tensor after another."""
    for p, direction in zip(params, directions, strict=True):
        p.sub_(direction * scale.to(p.device, p.dtype, non_blocking=True))
