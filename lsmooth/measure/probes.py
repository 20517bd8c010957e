"""Fixed probe batches in place of the step's own: their mean gradient at x_t, and how far they scatter about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsmooth.measure.norms import Kind, TensorNorms
from lsmooth.parallel.shards import local
from lsmooth.replay.arrivals import counted_arrivals
from lsmooth.replay.evaluation import Evaluation
from lsmooth.replay.interrupts import DeferredSignals
from lsmooth.replay.microbatch import Closure, Microbatch
from lsmooth.replay.state import Surroundings


@dataclass(frozen=True)
class ProbedStart:
    """What the probes give at x_t.

    Attributes:
        microbatches: The probes, to be evaluated again.
        losses: Their losses, scalars.
        gradient: Their mean gradient, by position of the parameter; None where none arrived.
        noise: Standard deviation of their gradients, by kind of norm, (p,) each; None of a single one.
        arrivals: How often their backward passes accumulated into each parameter.
    """

    microbatches: tuple[Microbatch, ...]
    losses: tuple[Tensor, ...]
    gradient: list[Tensor | None]
    noise: dict[Kind, Tensor] | None
    arrivals: dict[Tensor, int]


class Probes:
    """Closures that each return a loss on a fixed batch, whose mean is an estimate of the full loss.

    Args:
        closures: The probes.
        seed: For their randomness, the same at every step.
        parameters: The measured parameters.
        norms: Takes norms of gradients.
        evaluation: Puts everything back.
        starts: What else is looked through for models and generators: the model.
    """

    def __init__(
        self,
        closures: Sequence[Closure],
        seed: int,
        parameters: Sequence[Tensor],
        norms: TensorNorms,
        evaluation: Evaluation,
        *starts: object,
    ) -> None:
        self._closures = tuple(closures)
        self._seed = seed
        self._parameters = parameters
        self._norms = norms
        self._evaluation = evaluation
        self._starts = starts

    def at_start(self) -> ProbedStart:
        """Evaluate the probes at x_t: their mean gradient and, of several, its standard deviation, norm-wise.

        With g_i the n probes' gradients and m_i the mean of the first i, the variance is

            1 / (n - 1) sum_{i>1} (i - 1) / i ‖g_i - m_{i-1}‖²,

        one gradient being held at a time. In the 2-norm that is 1 / (n - 1) sum_i ‖g_i - m_n‖² (Welford 1962). In
        others its mean is E ‖g_1 - E g_1‖² where the noise is Gaussian: sqrt((i - 1) / i) (g_i - m_{i-1}) is then
        distributed as g_1 - E g_1.
        """
        surroundings = self._surroundings()
        total: list[Tensor | None] = [None] * len(self._parameters)
        arrivals: dict[Tensor, int] = {}
        losses: list[Tensor] = []
        microbatches: list[Microbatch] = []
        noise: dict[Kind, Tensor] | None = None
        with self._evaluation.at_start(surroundings) as interrupts:
            for seen, probe in enumerate(self._closures):
                microbatch = Microbatch(probe, surroundings, None)
                losses.append(self._add(microbatch, total, seen, arrivals, interrupts))
                if seen:
                    part = self._spread(total, seen)
                    noise = part if noise is None else {k: torch.hypot(noise[k], part[k]) for k in part}
                microbatches.append(microbatch)
            for gradient in total:
                if gradient is not None:
                    gradient.div_(len(self._closures))
        if noise is not None:
            noise = {kind: norms / math.sqrt(len(self._closures) - 1) for kind, norms in noise.items()}
        return ProbedStart(tuple(microbatches), tuple(losses), total, noise, arrivals)

    def _surroundings(self) -> Surroundings:
        device_type = self._parameters[0].device.type
        return Surroundings.capture(*self._closures, *self._starts, device_type=device_type, seed=self._seed)

    @torch.no_grad()
    def _add(
        self,
        microbatch: Microbatch,
        total: list[Tensor | None],
        seen: int,
        arrivals: dict[Tensor, int],
        interrupts: DeferredSignals,
    ) -> Tensor:
        """Add a probe's gradient to the sum of those `seen`, and its distance from their mean to the norms."""
        with counted_arrivals(self._parameters) as counts:
            loss = self._evaluation.on_row_device(microbatch.evaluate(interrupts.allowed))
            for position, parameter in enumerate(self._parameters):
                if parameter.grad is None:
                    continue
                gradient, before = local(parameter.grad), total[position]
                if seen:
                    self._norms.add([position], [gradient], [None if before is None else before / seen])
                if before is None:
                    total[position] = gradient.detach().clone()
                else:
                    before.add_(gradient)
                parameter.grad = None
        for parameter, count in counts.items():
            arrivals[parameter] = arrivals.get(parameter, 0) + count
        return loss

    def _spread(self, total: Sequence[Tensor | None], seen: int) -> dict[Kind, Tensor]:
        """Return sqrt(i / (i + 1)) ‖g_{i+1} - m_i‖ of each tensor by kind, i probes having been `seen` before."""
        for position in self._norms.missing():
            gradient = total[position]
            if gradient is not None:
                self._norms.add([position], [gradient / seen], [None])
        share = math.sqrt(seen / (seen + 1))
        return {kind: norms * share for kind, norms in self._norms.result().items()}
