"""What training did, as records that all the rest works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lsmooth.loop.gradient import StepGradient
from lsmooth.replay.microbatch import Microbatch
from lsmooth.replay.segment import Segment
from lsmooth.trace.layout import NormKind


@dataclass(frozen=True)
class BackwardPass:
    """One backward pass of training.

    Attributes:
        microbatches: The losses that it started from, to be evaluated again.
        losses: Their values, scalars, weighted as in the step.
        arrivals: How often it accumulated into each parameter.
        leaves: The leaf tensors that it accumulated into.
    """

    microbatches: tuple[Microbatch, ...]
    losses: tuple[Tensor, ...]
    arrivals: Mapping[Tensor, int]
    leaves: tuple[Tensor, ...]


@dataclass(frozen=True)
class Companion:
    """A trained parameter of the model that another optimizer steps, as it was at the first backward.

    Attributes:
        parameter: The parameter.
        value: A copy of its value.
        version: Its version counter.
    """

    parameter: Tensor
    value: Tensor
    version: int


@dataclass(frozen=True)
class Step:
    """An optimizer step that is measured, from x_t to x_{t+1}.

    Attributes:
        number: Its index, counted from 0.
        microbatches: What its loss is the sum of, or, for probes, the mean.
        divisor: The number of probes; 1 without.
        loss: f(x_t), a scalar.
        gradient: grad f(x_t), by position of the parameter.
        segment: x_t, and after the step x_{t+1}, of the active parameters.
        active: Positions of the parameters that the step may change.
        lr: Learning rate of each parameter group, taken before the step; NaN where a group has none.
        flags: What is known against it, bits of `Status`.
        arrivals: How often its backward passes accumulated into each parameter.
        leaves: The leaf tensors that they accumulated into, with their versions then.
        companions: What other optimizers step.
        foreign: Sum of norms of gradients that were there before the first backward; for probes, how many tensors have
            changed since their gradient was evaluated; None for none.
        noise: Standard deviation of the probes' gradients, by kind of norm, (p,) each; None without.
    """

    number: int
    microbatches: tuple[Microbatch, ...]
    loss: Tensor
    gradient: StepGradient
    segment: Segment
    active: tuple[int, ...]
    lr: tuple[float | Tensor, ...]
    flags: int
    arrivals: Mapping[Tensor, int]
    leaves: tuple[tuple[Tensor, int], ...] = ()
    companions: tuple[Companion, ...] = ()
    foreign: Tensor | None = None
    noise: Mapping[NormKind, Tensor] | None = None
    divisor: int = 1

    @property
    def scale(self) -> Tensor | None:
        """The factor that gradients carry, None for 1: a scaler does not change it between two steps."""
        return self.microbatches[0].scale

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The floating-point dtypes that its loss is computed in, as far as they are seen."""
        found = {parameter.dtype for parameter in self.segment.start}
        return frozenset(found).union(*(microbatch.all_dtypes() for microbatch in self.microbatches))

    def without_autocast(self) -> Step:
        """Return the same step, its losses evaluated without autocast; the gradient is gone, and to be evaluated."""
        self.gradient.drop()
        return replace(self, microbatches=tuple(microbatch.without_autocast() for microbatch in self.microbatches))


@dataclass(frozen=True)
class SkippedStep:
    """A measured step whose backward passes came, and whose optimizer step did not (a scaler's skip, a `continue`).

    Attributes:
        number: Its index, counted from 0.
        loss: f(x_t), a scalar.
        lr: Learning rate of each parameter group.
        flags: What is known against it, bits of `Status`.
    """

    number: int
    loss: Tensor
    lr: tuple[float | Tensor, ...]
    flags: int
