"""Fixed probe batches in place of the step's own: their mean gradient at x_t, and how far they scatter about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.measure.norms import Kind, TensorNorms
from lsmooth.parallel.shards import local
from lsmooth.replay.arrivals import counted_arrivals
from lsmooth.replay.contents import Imprint, differs, imprint
from lsmooth.replay.evaluation import Consumer, Evaluation, Replay, joined
from lsmooth.replay.interrupts import DeferredSignals
from lsmooth.replay.microbatch import Closure, Microbatch
from lsmooth.replay.parking import in_pieces
from lsmooth.replay.segment import Segment
from lsmooth.replay.state import Surroundings

if TYPE_CHECKING:
    from lsmooth.loop.step import Step


@dataclass(frozen=True)
class ProbedStart:
    """What the probes give at x_t.

    Attributes:
        microbatches: The probes, to be evaluated again.
        losses: Their losses, scalars.
        gradient: Their mean gradient, by position of the parameter; None where none arrived.
        noise: Standard deviation of their gradients, by kind of norm, (p,) each; None of a single one.
        arrivals: How often their backward passes accumulated into each parameter.
        stale: Whether parameters have changed since all of that was evaluated, a scalar that is not 0 then; None where
            they cannot have.
    """

    microbatches: tuple[Microbatch, ...]
    losses: tuple[Tensor, ...]
    gradient: list[Tensor | None]
    noise: dict[Kind, Tensor] | None
    arrivals: dict[Tensor, int]
    stale: Tensor | None = None


@dataclass
class _Kept:
    """What the probes gave at x_{t+1}, which is the next step's x_t.

    Attributes:
        start: What they gave.
        segment: Holds x_{t+1} until the next step has been taken.
        parameters: All parameters that the probes can reach, with their imprints when x_{t+1} was put back; None
            before that.
    """

    start: ProbedStart
    segment: Segment
    parameters: list[tuple[Tensor, Imprint]] | None = None


class Probes:
    """Closures that each return a loss on a fixed batch, whose mean is an estimate of the full loss.

    Args:
        closures: The probes.
        seed: For their randomness, the same at every step.
        parameters: The measured parameters.
        norms: Takes norms of gradients.
        evaluation: Puts everything back.
        starts: What else is looked through for models and generators: the model.
        autocast: Whether autocast contexts are in force as they are found.
    """

    def __init__(
        self,
        closures: Sequence[Closure],
        seed: int,
        parameters: Sequence[Tensor],
        norms: TensorNorms,
        evaluation: Evaluation,
        *starts: object,
        autocast: bool = True,
    ) -> None:
        self._closures = tuple(closures)
        self._seed = seed
        self._parameters = parameters
        self._norms = norms
        self._evaluation = evaluation
        self._starts = starts
        self._kept: _Kept | None = None
        self._autocast = autocast

    def at_start(self) -> ProbedStart:
        """Evaluate the probes at x_t: their mean gradient and, of several, its standard deviation, norm-wise.

        With g_i the n probes' gradients and m_i the mean of the first i, the variance is

            1 / (n - 1) sum_{i>1} (i - 1) / i ‖g_i - m_{i-1}‖²,

        one gradient being held at a time. In the 2-norm that is 1 / (n - 1) sum_i ‖g_i - m_n‖² (Welford 1962). In
        others its mean is E ‖g_1 - E g_1‖² where the noise is Gaussian: sqrt((i - 1) / i) (g_i - m_{i-1}) is then
        distributed as g_1 - E g_1.

        What `at_end` has kept of the step before is taken in place of that, where nothing has changed since.
        """
        kept, self._kept = self._kept, None
        if kept is not None and self._still_holds(kept):
            return replace(kept.start, stale=_changed_on_device(kept.segment))
        surroundings = self._surroundings()
        microbatches = tuple(Microbatch(probe, surroundings, None) for probe in self._closures)
        if not self._autocast:
            microbatches = tuple(microbatch.without_autocast() for microbatch in microbatches)
        with self._evaluation.at_start(surroundings) as interrupts:
            return self._evaluated(microbatches, interrupts)

    def at_end(self, step: Step, replay: Replay, consume: Consumer) -> Tensor:
        """Evaluate the probes at x_{t+1} as `at_start` does, and keep what they give for the step that comes next.

        Args:
            step: The step that has been taken.
            replay: Moves along it.
            consume: Takes copies of the mean gradient.

        Returns:
            The mean loss.
        """
        start = replay.by(1.0, lambda interrupts: self._evaluated(step.microbatches, interrupts))
        bucket: list[int] = []
        filled = 0
        for position, gradient in enumerate(start.gradient):
            if gradient is not None:
                bucket.append(position)
                filled += gradient.numel() * gradient.element_size()
            if bucket and (filled >= self._evaluation.bucket_bytes or position == len(start.gradient) - 1):
                consume(bucket, [start.gradient[i].clone() for i in bucket])  # type: ignore[union-attr]
                bucket, filled = [], 0
        self._kept = _Kept(start, step.segment)
        return joined(start.losses, len(start.losses))

    def settle(self) -> None:
        """Take note that parameters are at x_{t+1} again, and all else is as training has it."""
        if self._kept is not None:
            self._kept.parameters = [(p, imprint(p)) for p in self._reached(self._kept)]

    def forget(self) -> None:
        """Give back the memory of what is kept."""
        self._kept = None

    def _reached(self, kept: _Kept) -> list[Tensor]:
        models = kept.start.microbatches[0].surroundings.modules.models
        return list(dict.fromkeys([*self._parameters, *(p for model in models for p in model.parameters())]))

    def _still_holds(self, kept: _Kept) -> bool:
        """Say whether the probes would give the same now, as far as that can be seen without waiting."""
        if kept.parameters is None:
            return False
        reached = self._reached(kept)
        return (
            len(reached) == len(kept.parameters)
            and all(p is q and imprint(p) == then for p, (q, then) in zip(reached, kept.parameters, strict=True))
            # Writes through `.data` go past version counters.
            and not any(map(differs, kept.segment.parameters, kept.segment.stop))
            and kept.start.microbatches[0].surroundings.holds()
        )

    def _evaluated(self, microbatches: Sequence[Microbatch], interrupts: DeferredSignals) -> ProbedStart:
        """Evaluate the probes where the parameters are."""
        count = len(microbatches)
        total: list[Tensor | None] = [None] * len(self._parameters)
        arrivals: dict[Tensor, int] = {}
        losses: list[Tensor] = []
        noise: dict[Kind, Tensor] | None = None
        for seen, microbatch in enumerate(microbatches):
            losses.append(self._add(microbatch, total, seen, arrivals, interrupts))
            if seen:
                part = self._spread(total, seen)
                noise = part if noise is None else {k: torch.hypot(noise[k], part[k]) for k in part}
        for gradient in total:
            if gradient is not None:
                gradient.div_(count)
        if noise is not None:
            noise = {kind: norms / math.sqrt(count - 1) for kind, norms in noise.items()}
        return ProbedStart(tuple(microbatches), tuple(losses), total, noise, arrivals)

    def _surroundings(self) -> Surroundings:
        device_type = self._parameters[0].device.type
        # A loop may take its step under `no_grad`.
        with torch.enable_grad():
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


def _changed_on_device(segment: Segment) -> Tensor | None:
    """Say whether parameters differ from x_{t+1}, a scalar on their device, where that cannot be seen at once."""
    if not segment.parameters or segment.parameters[0].device.type == "cpu":
        return None
    pairs = [pair for parts in in_pieces(segment.parameters, segment.stop) for pair in zip(*parts, strict=True)]
    return torch.stack([(now != then).any() for now, then in pairs]).sum()
