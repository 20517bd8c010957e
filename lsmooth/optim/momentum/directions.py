"""The records that the stages of a step hand each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsmooth.optim.tensors import by_device_and_dtype, widest


@dataclass(frozen=True)
class Hyperparameters:
    """How momentum of one parameter group is updated, as the optimizers' docstrings describe it."""

    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float
    maximize: bool
    differentiable: bool


class Directions(NamedTuple):
    """Where one group can move: a tensor for each parameter, along the gradient and along the momentum."""

    gradient: list[Tensor]
    momentum: list[Tensor]


@dataclass(frozen=True)
class Move:
    """The next step of one group: its directions, and the share of the step that follows each."""

    group: dict[str, Any]
    params: list[Tensor]
    directions: Directions
    shares: tuple[float, float]
    foreach: bool


def whole_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all elements of all tensors, without dimensions, on the first one's device.

    Norms of tensors of one device and dtype are taken and joined in that dtype, or in float32 where it is narrower:
    three kernels in all. Norms of several devices or dtypes are joined in the widest dtype.
    """
    home = tensors[0].device
    norms: list[Tensor] = []
    for (alike,) in by_device_and_dtype(tensors):
        wide = torch.float32 if alike[0].dtype in (torch.float16, torch.bfloat16) else alike[0].dtype
        norms.append(torch.stack(torch._foreach_norm(alike, 2, dtype=wide)))
    if len(norms) > 1:
        norms = [torch.cat([norm.to(home, widest(home), non_blocking=True) for norm in norms])]
    return torch.linalg.vector_norm(norms[0])
