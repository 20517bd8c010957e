"""Evaluates a step's loss and gradient again at points of its segment, and puts everything back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from lsmooth.replay.arrivals import Arrivals, taken_whole
from lsmooth.replay.averaged import AveragedArrivals
from lsmooth.replay.contents import imprint
from lsmooth.replay.graphs import Played, Player
from lsmooth.replay.interrupts import DeferredSignals
from lsmooth.replay.microbatch import Microbatch
from lsmooth.replay.segment import Segment
from lsmooth.replay.state import Surroundings, put_back

if TYPE_CHECKING:
    from lsmooth.loop.step import Companion, Step
    from lsmooth.parallel.averaging import Averager

# Takes positions of parameters and their gradients at one point, which it may overwrite.
Consumer = Callable[[Sequence[int], Sequence[Tensor]], None]

Result = TypeVar("Result")

# Gradients are consumed in buckets of this share of all gradients, and at least this many bytes: few large operations,
# within bounded memory.
BUCKET_SHARE = 1 / 20
BUCKET_LEAST_BYTES = 1 << 16


class Evaluation:
    """Evaluates the loss of a step again, its gradient going to a consumer.

    Args:
        parameters: The measured parameters.
        dtype: Dtype in which losses are kept.
        takes_early: Whether `.grad` may be taken away during backward.
        shares_gradient_memory: Whether the next backward writes into the memory of the last one's `.grad`.
        player: Plays evaluations back as CUDA graphs; None for plain evaluations.
        averager: Averages gradients over ranks as they arrive, where it can; None leaves that to the model.

    Attributes:
        bucket_bytes: Gradients are handed on together once they are this large.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        dtype: torch.dtype,
        *,
        takes_early: bool = True,
        shares_gradient_memory: bool = False,
        player: Player | None = None,
        averager: Averager | None = None,
    ) -> None:
        self._parameters = parameters
        self._dtype = dtype
        self._shares_gradient_memory = shares_gradient_memory
        self._player = player
        total = sum(p.numel() * p.element_size() for p in parameters)
        self.bucket_bytes = max(BUCKET_LEAST_BYTES, int(BUCKET_SHARE * total))
        # A CUDA graph's gradients are complete only at its end.
        whole = taken_whole(total, parameters[0].device)
        early = not whole and player is None
        self._takes_early = early and takes_early
        self._averager = averager if early else None

    @contextlib.contextmanager
    def set_aside(self, step: Step) -> Iterator[Replay]:
        """Run a block that evaluates the loss at points of the step's segment; then put everything back.

        Parameters, gradients, buffers, flags, random state, contents of objects and contexts are afterwards what they
        were, also after an error. Signals wait until everything is back; Ctrl-C also strikes inside an evaluation.
        """
        # Taking gradients early saves the memory of a full gradient. A borrowed gradient does not need it, and several
        # backward passes add to one; which of them `fully_shard` averages may differ from training, too.
        early = self._takes_early and len(step.microbatches) == 1 and not step.gradient.borrowed
        microbatches: Sequence[Microbatch | Played] = step.microbatches
        # Ranks may accumulate over different numbers of batches, and all have to average in the same way.
        averager = self._averager
        if averager is not None and not averager.may_take_over(step.microbatches[-1].surroundings.context):
            averager = None
        with (
            DeferredSignals() as interrupts,
            contextlib.nullcontext() if averager is None else averager.taking_over(),
            self._put_back(
                [microbatch.surroundings for microbatch in step.microbatches],
                [leaf for leaf, _ in step.leaves] + [t for m in step.microbatches for t in m.surroundings.leaves],
                step.companions,
                step.segment,
                copies=step.gradient.in_graphs,
                # Nothing writes to the model's own memory of gradients where they are averaged elsewhere.
                contents=self._shares_gradient_memory and averager is None,
            ),
            self._arrivals(step.arrivals, early, averager) as arrivals,
        ):
            yield Replay(self, step, microbatches, arrivals, interrupts)

    @contextlib.contextmanager
    def at_start(self, surroundings: Surroundings) -> Iterator[DeferredSignals]:
        """Run a block that evaluates losses at the present parameters; then put everything else back."""
        with (
            DeferredSignals() as interrupts,
            self._put_back(
                [surroundings], surroundings.leaves, (), None, copies=False, contents=self._shares_gradient_memory
            ),
        ):
            yield interrupts

    def on_row_device(self, loss: Tensor) -> Tensor:
        """Return a copy of a loss as rows hold it: a scalar on the device of the first parameter."""
        with torch.no_grad():
            copied = loss.to(self._parameters[0].device, self._dtype, non_blocking=True, copy=True)
            return copied.reshape(()) if copied.dim() else copied

    def captured(self, microbatches: Sequence[Microbatch]) -> Sequence[Microbatch | Played]:
        """Return the microbatches, or with a player their CUDA graphs."""
        return microbatches if self._player is None else self._player.captured(microbatches)

    @property
    def plays_graphs(self) -> bool:
        """Whether gradients lie in the memory of a CUDA graph, which the next evaluation overwrites."""
        return self._player is not None

    def close(self) -> None:
        """Release the memory of CUDA graphs."""
        self._player = None

    @contextlib.contextmanager
    def _put_back(
        self,
        states: Sequence[Surroundings],
        leaves: Sequence[Tensor],
        companions: Sequence[Companion],
        segment: Segment | None,
        *,
        copies: bool,
        contents: bool,
    ) -> Iterator[None]:
        """Run a block that may change gradients, buffers, flags, random state and parameters; then put all back.

        Args:
            states: The surroundings in which evaluations begin.
            leaves: Tensors besides parameters that gradients may be accumulated into.
            companions: Parameters of other optimizers; during the block they have their values at backward.
            segment: The segment along which the parameters are moved; None if they stay.
            copies: Whether gradients are copied, since evaluations overwrite their memory.
            contents: Whether their contents are, since evaluations may do so.
        """
        displaced = [(c, c.parameter.detach().clone()) for c in companions if imprint(c.parameter) != c.imprint]
        with put_back(states) as models:
            gradients = _Gradients.capture(self._holders(models, leaves), copies, contents)
            try:
                gradients.take_away()
                for companion, _ in displaced:
                    companion.parameter.detach().copy_(companion.value)
                yield
            finally:
                if segment is not None:
                    segment.put_back()
                for companion, now in displaced:
                    companion.parameter.detach().copy_(now)
                gradients.restore()

    def _arrivals(self, expected: Mapping[Tensor, int], early: bool, averager: Averager | None) -> Arrivals:
        if averager is not None:
            return AveragedArrivals(self._parameters, expected, self.bucket_bytes, averager)
        return Arrivals(self._parameters, expected if early else None, self.bucket_bytes)

    def _holders(self, models: Sequence[nn.Module], leaves: Sequence[Tensor]) -> list[Tensor]:
        return list(dict.fromkeys([*self._parameters, *(p for m in models for p in m.parameters()), *leaves]))


class Replay:
    """Evaluates one step's loss; made by `Evaluation.set_aside`, and valid until the end of its block."""

    def __init__(
        self,
        evaluation: Evaluation,
        step: Step,
        microbatches: Sequence[Microbatch | Played],
        arrivals: Arrivals,
        interrupts: DeferredSignals,
    ) -> None:
        self._evaluation = evaluation
        self._step = step
        self._microbatches = microbatches
        self._captured = False
        self._arrivals = arrivals
        self._interrupts = interrupts

    def at(self, gamma: float, consume: Consumer) -> Tensor:
        """Evaluate the step's loss at x_t + gamma d, hand its gradients on, and return the loss, a scalar.

        Args:
            gamma: The position, 0 for x_t and 1 for x_{t+1}.
            consume: Takes the gradients as they arrive; with probes, the gradients of their mean loss.
        """
        self._step.segment.move_to(gamma)
        return self._evaluated(consume)

    def at_part(self, places: Sequence[int], consume: Consumer) -> Tensor:
        """Do what `at` does with the segment's parameters at `places` at x_{t+1}, and all others at x_t."""
        self._step.segment.move_part(places)
        return self._evaluated(consume)

    def _evaluated(self, consume: Consumer) -> Tensor:
        """Evaluate the step's loss where the parameters are, and hand its gradients on."""
        step = self._step
        if not self._captured:
            self._microbatches, self._captured = self._evaluation.captured(step.microbatches), True

        def averaged(where: Sequence[int], gradients: Sequence[Tensor]) -> None:
            torch._foreach_div_(list(gradients), step.divisor)
            consume(where, gradients)

        with self._arrivals.taken_by(consume if step.divisor == 1 else averaged):
            losses = [
                self._evaluation.on_row_device(microbatch.evaluate(self._interrupts.allowed))
                for microbatch in self._microbatches
            ]
        return joined(losses, step.divisor)

    def by(self, gamma: float, evaluate: Callable[[DeferredSignals], Result]) -> Result:
        """Move the parameters to x_t + gamma d, and return the result of `evaluate` there."""
        self._step.segment.move_to(gamma)
        return evaluate(self._interrupts)

    def loss_at(self, gamma: float) -> Tensor:
        """Evaluate the step's loss alone at x_t + gamma d, without gradients, and return it, a scalar.

        Args:
            gamma: The position, which may be beyond 1.
        """
        step = self._step
        step.segment.move_to(gamma)
        losses = [
            self._evaluation.on_row_device(microbatch.evaluate_loss(self._interrupts.allowed))
            for microbatch in step.microbatches
        ]
        return joined(losses, step.divisor)

    def loss_and_gradients_at_start(self) -> tuple[Tensor, dict[int, Tensor]]:
        """Evaluate the loss and its gradient at x_t; return gradients by position, safe from later evaluations."""
        found: dict[int, Tensor] = {}
        graphs = self._evaluation.plays_graphs

        def keep(where: Sequence[int], gradients: Sequence[Tensor]) -> None:
            for position, gradient in zip(where, gradients, strict=True):
                found[position] = gradient.detach().clone() if graphs else gradient.detach()

        return self.at(0.0, keep), found


def joined(losses: Sequence[Tensor], divisor: int = 1) -> Tensor:
    """Return the sum of losses over `divisor`: the sum of microbatches, or the mean of probes."""
    total = torch.stack(list(losses)).sum() if len(losses) > 1 else losses[0]
    return total if divisor == 1 else total / divisor


@dataclass(frozen=True)
class _Gradients:
    """The `.grad` of tensors, and copies of their contents where evaluations may write to their memory."""

    holders: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]
    contents: tuple[Tensor | None, ...]

    @classmethod
    def capture(cls, holders: Sequence[Tensor], copies: bool, contents: bool) -> _Gradients:
        gradients = [holder.grad for holder in holders]
        if copies:
            gradients = [None if gradient is None else gradient.clone() for gradient in gradients]
        kept = [gradient.clone() if gradient is not None and contents else None for gradient in gradients]
        return cls(tuple(holders), tuple(gradients), tuple(kept))

    def take_away(self) -> None:
        for holder in self.holders:
            holder.grad = None

    def restore(self) -> None:
        for holder, gradient, content in zip(self.holders, self.gradients, self.contents, strict=True):
            holder.grad = gradient
            if gradient is not None and content is not None:
                gradient.detach().copy_(content)
