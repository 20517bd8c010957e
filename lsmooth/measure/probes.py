"""Probe batches in place of the step's own: their mean gradient at x_t, and its standard deviation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """Losses and gradients of the probes at x_t.

    Attributes:
        microbatches: The probes, in a form that can be evaluated again.
        losses: Losses of the probes, scalars.
        gradient: Mean gradient of the probes by position of the parameter; None where none arrived.
        noise: Standard deviation of the probes' gradients by kind of norm, (p,) each; None for a single probe.
        arrivals: Number of times that backward passes accumulated a gradient into each parameter.
        stale: Number of parameters that have changed since the evaluation, a scalar; None where none can have.
    """

    microbatches: tuple[Microbatch, ...]
    losses: tuple[Tensor, ...]
    gradient: list[Tensor | None]
    noise: dict[Kind, Tensor] | None
    arrivals: dict[Tensor, int]
    stale: Tensor | None = None


@dataclass
class _Kept:
    """Losses and gradients of the probes at x_{t+1}, which is the next step's x_t.

    Attributes:
        start: Losses and gradients.
        segment: Holds x_{t+1} until the next step has been taken.
        parameters: All parameters that the probes reach, with their imprints when x_{t+1} was put back; None before
            that.
    """

    start: ProbedStart
    segment: Segment
    parameters: list[tuple[Tensor, Imprint]] | None = None


class Probes:
    """Closures that each return a loss on a fixed batch; the mean loss is an estimate of the full loss.

    Args:
        closures: The probes.
        seed: Seed of the probes' randomness, the same at every step.
        parameters: The measured parameters.
        norms: Takes norms of gradients.
        evaluation: Evaluates losses, and puts everything back.
        starts: Further objects to search for models and generators: the model.
        autocast: True keeps the autocast contexts in force at the step; False evaluates without autocast.
        equal_part: Where ranks hold shards, makes of a rank's sums equal parts of the whole's (`Ranks.equal_part`).
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
        equal_part: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._closures = tuple(closures)
        self._seed = seed
        self._parameters = parameters
        self._norms = norms
        self._evaluation = evaluation
        self._starts = starts
        self._kept: _Kept | None = None
        self._autocast = autocast
        self._equal_part = equal_part
        device = parameters[0].device
        self._sums = {kind: torch.tensor(which, device=device) for kind, which in norms.sums().items() if any(which)}

    def at_start(self) -> ProbedStart:
        """Evaluate the probes at x_t: losses, mean gradient and, for several probes, the standard deviation.

        With g_i the gradients of the n probes and m_i the mean of the first i, the variance is

            1 / (n - 1) sum_{i>1} (i - 1) / i ‖g_i - m_{i-1}‖²,

        for which one gradient at a time is held besides the sum. In the 2-norm this equals
        1 / (n - 1) sum_i ‖g_i - m_n‖² (Welford 1962). In another norm its expectation is E ‖g_1 - E g_1‖² if the noise
        is Gaussian, since sqrt((i - 1) / i) (g_i - m_{i-1}) is then distributed as g_1 - E g_1.

        The result that `at_end` kept at the step before is returned instead, if nothing has changed since.
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
        """Evaluate the probes at x_{t+1} as `at_start` does, and keep the result for the next step.

        Args:
            step: The step that has been taken.
            replay: Moves parameters along the step.
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
        """Note that parameters are at x_{t+1} again, and that everything else is as training left it."""
        if self._kept is not None:
            self._kept.parameters = [(p, imprint(p)) for p in self._reached(self._kept)]

    def forget(self) -> None:
        """Drop the kept result, and release its memory."""
        self._kept = None

    def _reached(self, kept: _Kept) -> list[Tensor]:
        models = kept.start.microbatches[0].surroundings.modules.models
        return list(dict.fromkeys([*self._parameters, *(p for model in models for p in model.parameters())]))

    def _still_holds(self, kept: _Kept) -> bool:
        """Say whether the kept result is still valid, as far as can be seen without waiting for the device."""
        if kept.parameters is None:
            return False
        reached = self._reached(kept)
        return (
            len(reached) == len(kept.parameters)
            and all(p is q and imprint(p) == then for p, (q, then) in zip(reached, kept.parameters, strict=True))
            # Finds writes through `.data`, which go past version counters.
            and not any(map(differs, kept.segment.parameters, kept.segment.stop))
            and kept.start.microbatches[0].surroundings.holds()
        )

    def _evaluated(self, microbatches: Sequence[Microbatch], interrupts: DeferredSignals) -> ProbedStart:
        """Evaluate the probes at the present parameters."""
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
        # The loop may take its step under `no_grad`.
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
        """Evaluate a probe and return its loss.

        Its gradient is added to the sum of the `seen` earlier ones, and its distance from their mean to the norms.
        """
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
        """Return sqrt(i / (i + 1)) ‖g_{i+1} - m_i‖ of each tensor by kind of norm, for i = `seen`."""
        for position in self._norms.missing():
            gradient = total[position]
            if gradient is not None:
                self._norms.add([position], [gradient / seen], [None])
        share = math.sqrt(seen / (seen + 1))
        found = self._norms.result()
        if self._equal_part is not None:
            # The root of a sum of squares, which is taken over probes, is none of what the shards have by themselves.
            for kind, summed in self._sums.items():
                found[kind] = torch.where(summed, self._equal_part(found[kind]), found[kind])
        return {kind: norms * share for kind, norms in found.items()}


def _changed_on_device(segment: Segment) -> Tensor | None:
    """Return the number of parameters that differ from x_{t+1}, a scalar; None on the CPU, where `differs` tells."""
    if not segment.parameters or segment.parameters[0].device.type == "cpu":
        return None
    pairs = [pair for parts in in_pieces(segment.parameters, segment.stop) for pair in zip(*parts, strict=True)]
    return torch.stack([(now != then).any() for now, then in pairs]).sum()
