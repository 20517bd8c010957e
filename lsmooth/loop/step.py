"""Records of what training did: backward passes, and measured or skipped steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lsmooth.loop.gradient import StepGradient
from lsmooth.replay.contents import Imprint
from lsmooth.replay.microbatch import Microbatch
from lsmooth.replay.segment import Segment
from lsmooth.trace.layout import NormKind


@dataclass(frozen=True)
class BackwardPass:
    """One backward pass of training.

    Attributes:
        microbatches: The losses that it started from, in a form that can be evaluated again.
        losses: Values of these losses, scalars, weighted as in the step.
        arrivals: Number of times that it accumulated a gradient into each parameter.
        leaves: The leaf tensors that it accumulated gradients into.
    """

    microbatches: tuple[Microbatch, ...]
    losses: tuple[Tensor, ...]
    arrivals: Mapping[Tensor, int]
    leaves: tuple[Tensor, ...]


@dataclass(frozen=True)
class Companion:
    """A trained parameter that is not measured, since another optimizer steps it, as it was at the first backward pass.

    Attributes:
        parameter: The parameter.
        value: A copy of its value then.
        imprint: What changes when it is written to, as it was then.
    """

    parameter: Tensor
    value: Tensor
    imprint: Imprint


@dataclass(frozen=True)
class Step:
    """An optimizer step that is measured, from x_t to x_{t+1}.

    Attributes:
        number: Index of the step, counted from 0.
        microbatches: Their losses add up to the step's loss; with probes, the loss is their mean.
        divisor: Number of probes; 1 without probes.
        loss: f(x_t), a scalar.
        gradient: grad f(x_t), by position of the parameter.
        segment: x_t of the active parameters, and x_{t+1} once the step is taken.
        active: Positions of the parameters that the step may change.
        lr: Learning rate of each parameter group, taken before the step; NaN where a group has none.
        flags: Bits of `Status` that are known before the step is evaluated again.
        arrivals: Number of times that backward passes accumulated a gradient into each parameter.
        leaves: The leaf tensors that they accumulated into, each with its version counter then.
        companions: Trained parameters that other optimizers step.
        foreign: Sum of the norms of gradients that were there before the first backward pass. With probes, the number
            of tensors that have changed since the probes' gradient was evaluated. None where there was nothing.
        noise: Standard deviation of the probes' gradients, by kind of norm, (p,) each; None without probes.
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
        """The gradient scaler's factor that gradients still carry, a scalar; None for 1."""
        return self.microbatches[0].scale

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The floating-point dtypes seen in the computation of the loss."""
        found = {parameter.dtype for parameter in self.segment.start}
        return frozenset(found).union(*(microbatch.all_dtypes() for microbatch in self.microbatches))

    def without_autocast(self) -> Step:
        """Return the same step with its losses evaluated without autocast, and with its gradient dropped."""
        self.gradient.drop()
        return replace(self, microbatches=tuple(microbatch.without_autocast() for microbatch in self.microbatches))


@dataclass(frozen=True)
class SkippedStep:
    """A step that was due and had backward passes, but no optimizer step (a scaler's skip, a `continue`).

    Attributes:
        number: Index of the step, counted from 0.
        loss: f(x_t), a scalar.
        lr: Learning rate of each parameter group.
        flags: Bits of `Status`.
    """

    number: int
    loss: Tensor
    lr: tuple[float | Tensor, ...]
    flags: int
