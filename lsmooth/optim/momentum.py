"""Momentum SGD whose step is scaled by the norm of the whole direction: what clipping and normalizing share.

Three stages, each with a routine for single tensors and one for many: `advance` updates momentum, `whole_norm` takes
the norm over all parameters of all groups, `descend` steps. The norm stays on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsmooth.errors import InvalidArgumentError
from lsmooth.optim.groups import (
    KERNEL_DEVICES,
    CheckedOptimizer,
    by_device_and_dtype,
    check_at_least_zero,
    check_lr,
    is_plain,
    lie_alike,
)
from lsmooth.precision import accumulation_dtype


class MomentumOptimizer(CheckedOptimizer):
    """Base of the optimizers that scale a direction by its norm over all parameters.

    A subclass says in `_shares` how much of the step follows the gradient and how much the momentum, and in `_scale`
    what a direction is multiplied by, given its norm.
    """

    def _check(self, group: dict[str, Any]) -> None:
        check_lr(group["lr"])
        for name in ("momentum", "dampening", "weight_decay"):
            check_at_least_zero(f"{name} value", group[name])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise InvalidArgumentError("Nesterov momentum requires a momentum and zero dampening.")
        if group["foreach"] and group["differentiable"]:
            raise InvalidArgumentError("`foreach` does not support `differentiable`; leave foreach unset.")

    def _shares(self, group: dict[str, Any]) -> tuple[float, float]:
        """Return the weights of gradient and momentum in the step."""
        return 0.0, 1.0

    def _scale(self, group: dict[str, Any], norm: Tensor) -> Tensor:
        """Return the factor, a tensor without dimensions, of a direction of this norm."""
        raise NotImplementedError

    def _update(self) -> None:
        moves = [move for group in self.param_groups if (move := self._advance(group)) is not None]
        for kind in (0, 1):
            if not any(move.shares[kind] for move in moves):
                continue
            # A group without momentum moves along its gradient, whatever the shares say, and counts in both norms.
            norm = whole_norm([tensor for move in moves for tensor in move.directions[kind]])
            for move in moves:
                if move.shares[kind] == 0:
                    continue
                scale = self._scale(move.group, norm)
                if move.shares[kind] != 1:
                    scale = scale * move.shares[kind]
                descend = _multi_tensor_descend if move.foreach else _single_tensor_descend
                descend(move.params, move.directions[kind], scale)

    def _advance(self, group: dict[str, Any]) -> _Move | None:
        params, grads = self._with_gradients(group)
        if not params:
            return None
        foreach = group["foreach"]
        if foreach is None:
            foreach = not group["differentiable"] and is_plain(params)
        states = [self.state[p] for p in params]
        buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in states]
        advance = _multi_tensor_advance if foreach else _single_tensor_advance
        directions = advance(
            params,
            grads,
            buffers,
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            differentiable=group["differentiable"],
        )
        shares = self._shares(group)
        if group["momentum"] == 0:
            shares = (0.0, 1.0)
        else:
            for state, buffer in zip(states, buffers, strict=True):
                state["momentum_buffer"] = buffer
        return _Move(group, params, directions, shares, foreach)


@dataclass(frozen=True)
class _Move:
    """What one group is about to do: its directions along gradient and momentum, and the share of each."""

    group: dict[str, Any]
    params: list[Tensor]
    directions: tuple[list[Tensor], list[Tensor]]
    shares: tuple[float, float]
    foreach: bool


def whole_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all elements of all tensors, without dimensions, on the first one's device."""
    home = tensors[0].device
    norms: list[Tensor] = []
    for (alike,) in by_device_and_dtype(tensors):
        wide = torch.float32 if alike[0].dtype in (torch.float16, torch.bfloat16) else alike[0].dtype
        found = torch.stack(torch._foreach_norm(alike, 2, dtype=wide))
        norms.append(found.to(home, accumulation_dtype(home), non_blocking=True))
    return torch.linalg.vector_norm(torch.cat(norms) if len(norms) > 1 else norms[0])


def _single_tensor_advance(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor | None],
    *,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    differentiable: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Update momentum buffers, in place in the list too, and return the directions along gradient and momentum."""
    gradients: list[Tensor] = []
    directions: list[Tensor] = []
    for position, (p, grad, buffer) in enumerate(zip(params, grads, buffers, strict=True)):
        if maximize:
            grad = -grad
        if weight_decay != 0:
            grad = grad.add(p, alpha=weight_decay)
        gradients.append(grad)
        if momentum == 0:
            directions.append(grad)
            continue
        if buffer is None:
            buffer = torch.clone(grad) if differentiable else torch.clone(grad).detach()
            buffers[position] = buffer
        else:
            buffer.mul_(momentum).add_(grad, alpha=1 - dampening)
        if nesterov:
            directions.append(grad.add(buffer, alpha=momentum))
        else:
            # Autograd must find the direction as it was here, and the next step overwrites the buffer.
            directions.append(buffer.clone() if differentiable else buffer)
    return gradients, directions


def _multi_tensor_advance(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor | None],
    *,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    differentiable: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Do what `_single_tensor_advance` does, for all tensors of a device together."""
    if differentiable:
        raise InvalidArgumentError("`foreach` does not support `differentiable`; leave foreach unset.")
    gradients: list[Tensor] = list(grads)
    directions: list[Tensor] = list(grads)
    for p, g, held, positions in by_device_and_dtype(params, grads, buffers, range(len(params))):
        if maximize:
            g = list(torch._foreach_neg(g))
        if weight_decay != 0:
            g = list(torch._foreach_add(g, p, alpha=weight_decay))
        d = g
        if momentum != 0:
            kept = [place for place, buffer in enumerate(held) if buffer is not None]
            if kept:
                all_kept = len(kept) == len(held)
                old = held if all_kept else [held[place] for place in kept]
                torch._foreach_mul_(old, momentum)
                torch._foreach_add_(old, g if all_kept else [g[place] for place in kept], alpha=1 - dampening)
            for place in set(range(len(held))).difference(kept):
                held[place] = buffers[positions[place]] = torch.clone(g[place]).detach()
            d = held
            if nesterov:
                d = list(torch._foreach_add(g, d, alpha=momentum))
        if len(g) == len(grads):
            return g, d
        for position, gradient, direction in zip(positions, g, d, strict=True):
            gradients[position], directions[position] = gradient, direction
    return gradients, directions


def _single_tensor_descend(params: list[Tensor], directions: list[Tensor], scale: Tensor) -> None:
    """Step by -scale times the direction, one tensor after another."""
    for p, direction in zip(params, directions, strict=True):
        p.sub_(direction * scale.to(p.device, p.dtype, non_blocking=True))


def _multi_tensor_descend(params: list[Tensor], directions: list[Tensor], scale: Tensor) -> None:
    """Do what `_single_tensor_descend` does, for all tensors of a device together."""
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
