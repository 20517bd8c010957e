"""The two records that the backends of generalized SignSGD work on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lsmooth.optim.tensors import by_device_and_dtype, chosen, widest


@dataclass(frozen=True)
class Hyperparameters:
    """The numbers and switches of one parameter group, as `GeneralizedSignSGD` describes them."""

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled_weight_decay: bool
    bias_correction: bool
    maximize: bool
    differentiable: bool

    def corrections(self, step: int, device: torch.device) -> tuple[float | Tensor, float | Tensor]:
        """Return 1 - beta1^step and √(1 - beta2^step), by which m and √v are divided; 1 without correction.

        They are numbers, but tensors on `device` in code that torch.compile makes, which a number of the step would
        have made anew at every step.
        """
        if not self.bias_correction:
            return 1.0, 1.0
        count: int | Tensor = step
        if torch.compiler.is_compiling():
            count = torch.full((), step, dtype=widest(device), device=device)
        return 1 - self.beta1**count, (1 - self.beta2**count) ** 0.5


class Tensors(NamedTuple):
    """Parallel lists: position i of each belongs to parameter i.

    Attributes:
        params: x.
        grads: g; never changed.
        exp_avgs: m.
        exp_avg_sqs: v. With beta2 = 0 no backend reads it, and it holds m again.
        steps: The number t of this step, counted from 1.
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[int]

    def chosen(self, positions: Sequence[int]) -> Tensors:
        """Return the tensors at some positions."""
        return Tensors(*chosen(self, positions))

    def alike(self, bias_correction: bool) -> Iterator[tuple[int, Tensors]]:
        """Split into runs of one device, dtype and number of the step, each with that number.

        Without bias correction the number does not matter: steps of all numbers go together, as 1.
        """
        for columns in by_device_and_dtype(*self):
            run = Tensors(*columns)
            first = run.steps[0] if bias_correction else 1
            if not bias_correction or all(step == first for step in run.steps):
                yield first, run
                continue
            for step in sorted(set(run.steps)):
                yield step, run.chosen([position for position, other in enumerate(run.steps) if other == step])


def least_root(dtype: torch.dtype) -> float:
    """Return a number no larger than √v of any v > 0 in a dtype: the lower bound of √v where eps = 0.

    The bound changes the root of 0 alone. It makes 0/0 into 0. Where m² was too small for the dtype, so that v is 0,
    the bound keeps |m| / √v below 1 / √(1 - beta2), which is the bound in exact arithmetic.
    """
    numbers = torch.finfo(dtype)
    return 0.99 * (numbers.smallest_normal * numbers.eps) ** 0.5
