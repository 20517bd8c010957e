"""The records that the stages of a step hand each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsmooth.optim.tensors import by_device_and_dtype


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
    """Return the 2-norm of all elements of all tensors, without dimensions, on the first one's device."""
    home = tensors[0].device
    # Apple's GPUs have no float64.
    widest = torch.float32 if home.type == "mps" else torch.float64
    norms: list[Tensor] = []
    for (alike,) in by_device_and_dtype(tensors):
        wide = torch.float32 if alike[0].dtype in (torch.float16, torch.bfloat16) else alike[0].dtype
        found = torch.stack(torch._foreach_norm(alike, 2, dtype=wide))
        norms.append(found.to(home, widest, non_blocking=True))
    return torch.linalg.vector_norm(torch.cat(norms) if len(norms) > 1 else norms[0])
