"""Decides which steps are measured, and collects what the backward passes before each of them leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.errors import RecorderError
from lsmooth.loop.faults import Faults
from lsmooth.loop.gradient import GradientKeeper, StepGradient, imprint
from lsmooth.loop.joint_step import UNSEEN_STEPS, JointStep
from lsmooth.loop.step import BackwardPass, Companion, SkippedStep, Step
from lsmooth.loop.subject import Subject, parameters_of
from lsmooth.measure.norms import tensor_norms
from lsmooth.parallel.shards import local
from lsmooth.replay.contents import Imprint
from lsmooth.replay.contents import imprint as imprint_of_contents
from lsmooth.replay.evaluation import joined
from lsmooth.replay.segment import Segment
from lsmooth.trace.layout import Status

if TYPE_CHECKING:
    from lsmooth.measure.probes import ProbedStart


_NONE_COLLECTED = (
    "optimizer.step() was called at measured step {} without recorder.backward; replace loss.backward() by "
    "loss = recorder.backward(lambda: loss_fn(model(inputs), targets)), or, where gradients come from "
    "torch.autograd.grad or torch.func, give the recorder probe=, a loss that it evaluates itself."
)
_NONE_WATCHED = (
    "optimizer.step() was called at measured step {}, but no backward pass came from a loss that the watched function "
    "or forward had returned; where the loop computes its loss elsewhere, use "
    "loss = recorder.backward(lambda: loss_fn(model(inputs), targets)) in place of loss.backward(), or, where "
    "gradients come from torch.autograd.grad or torch.func, give the recorder probe=, a loss that it evaluates itself."
)
_INSIDE_BACKWARD = (
    "optimizer.step() was called inside of backward: an optimizer that steps in gradient hooks has no single step to "
    "measure; step once, after backward."
)
_UNSEEN = (
    "The parameters change, but no step of the {} that the recorder was given is seen, so that nothing is measured; "
    "give the recorder the optimizer whose step() the loop calls, and make a new recorder for a new optimizer; if the "
    "loop steps one by other methods (SAM), give the one inside, and probe=, a loss that is evaluated where it begins."
)
# The user is warned after this many measured steps in a row whose weights changed between backward and step.
_MOVED_STEPS = 3
_MOVED = (
    "The parameters changed between backward and the step of the {} at three measured steps in a row; these steps are "
    "flagged as moved and enter no fit; if another optimizer wraps this one, give the recorder the wrapper, whose "
    "step() the loop calls; if the loop itself moves the parameters (SAM), give probe=, a loss that is evaluated where "
    "the step begins."
)


@dataclass
class _Collected:
    """What the backward passes since the last step have left so far; see `Step` for the fields."""

    gradient: StepGradient
    imprints: list[Imprint]
    companions: list[Companion]
    foreign: Tensor | None
    passes: list[BackwardPass] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    leaves: list[tuple[Tensor, int]] = field(default_factory=list)
    arrivals: dict[Tensor, int] = field(default_factory=dict)


class Attempts:
    """Counts optimizer steps, decides which are measured, and collects the backward passes before each.

    An attempt at a step begins with the first backward pass after a step. It ends with the next step; or, if the loop
    skips that step, with the first backward pass that does not accumulate onto the attempt's gradients.

    Args:
        subject: The model, its optimizers and parameters.
        joint: The joint step in progress.
        keeper: Decides whether gradients of steps are borrowed or copied.
        on_row_device: Copies a loss to the device of rows.
        due: Says whether the step of a number is measured; called once a step.
        skipped: Called with each step that was due and skipped.
        faults: Keeps errors from the loop.
        collects: Whether backward passes are collected; False with probes.
        offload: Whether x_t and x_{t+1} are kept in the host's memory.

    Attributes:
        number: Index of the next optimizer step, counted from 0.
    """

    def __init__(
        self,
        subject: Subject,
        joint: JointStep,
        keeper: GradientKeeper,
        on_row_device: Callable[[Tensor], Tensor],
        due: Callable[[int], bool],
        skipped: Callable[[SkippedStep], None],
        faults: Faults,
        *,
        collects: bool = True,
        offload: bool = False,
    ) -> None:
        self.subject = subject
        self.joint = joint
        self.collects = collects
        self.number = 0
        self._keeper = keeper
        self._due = due
        self._on_row_device = on_row_device
        self._skipped = skipped
        self.faults = faults
        # Number of steps in a row that were not seen although the parameters changed; and of measured steps in a row
        # whose parameters changed between backward and step.
        self._unseen = 0
        self._moved = 0
        # A step number, and whether that step is measured. `due` is called once a step, since a user's `every` may
        # return something else each time.
        self._decision: tuple[int, bool] | None = None
        self._collected: _Collected | None = None
        # A parameter, and the imprint of its gradient after the last backward pass.
        self._mark: tuple[Tensor, tuple[int, int]] | None = None
        self._offload = offload
        self._segment: Segment | None = None

    # --- which step it is ---

    def count_from(self, number: int) -> None:
        """Continue with a step of this number."""
        self.number = number
        self._decision = None

    @property
    def due(self) -> bool:
        """Whether the next step is measured."""
        if self._decision is None or self._decision[0] != self.number:
            self._decision = (self.number, self._due(self.number))
        return self._decision[1]

    def pass_over(self) -> None:
        """Leave the next step unmeasured, unless a backward pass of it has been collected."""
        if not self.collected:
            self._collected = None
            self._decision = (self.number, False)

    # --- backward passes ---

    def backward_begins(self) -> bool:
        """Note that a backward pass is about to begin, and return whether it is to be collected.

        If the gradients are no longer those that the last backward pass left, the loop skipped the step before this
        pass; the skipped step is then counted and reported.
        """
        if self._mark is not None and not self._still_accumulating():
            self._skip_step()
        return self.collects and self.due

    def begin(self) -> None:
        """Prepare for the first backward pass of a measured step; do nothing at its further ones."""
        if self._collected is not None:
            return
        subject = self.subject
        held = [p for p in subject.parameters if p.grad is not None]
        # An optimizer that sat the last step out may go on accumulating its gradient: that is no fault of the loop.
        left_over = self.joint.left_over()
        before = [local(p.grad) for p in held if p not in left_over and p.grad is not None]
        if before:
            self._say_if_lost(held)
        self._collected = _Collected(
            gradient=StepGradient(self._keeper, accumulates=any(p in left_over for p in held)),
            imprints=self._imprints(),
            companions=[Companion(p, p.detach().clone(), imprint_of_contents(p)) for p in subject.companions()],
            # 0 if zero_grad kept the tensors; anything else is the gradient of another function.
            foreign=tensor_norms(before, [None] * len(before), subject.device).sum() if before else None,
        )

    def _say_if_lost(self, held: Sequence[Tensor]) -> None:
        """Warn of parameters that the optimizer has lost, whose gradients are still there."""
        ours = {p for optimizer in self.subject.optimizers for p in parameters_of(optimizer)}
        if any(parameter not in ours for parameter in held):
            self.faults.say(
                "The optimizer has lost parameters since the recorder was attached, and its zero_grad leaves their "
                f"gradients: steps from {self.number} on are flagged as other_gradient; call model.zero_grad() too, or "
                "attach a new recorder, with a trace of its own.",
                kind="lost",
            )

    @property
    def in_graphs(self) -> bool:
        """Whether training runs in CUDA graphs, which overwrite gradients and returned tensors at each evaluation."""
        return self._keeper.in_graphs

    @property
    def begun(self) -> bool:
        """Whether the first backward pass of a measured step has begun."""
        return self._collected is not None

    @property
    def collected(self) -> bool:
        """Whether a backward pass of a measured step has been collected."""
        return self._collected is not None and bool(self._collected.passes)

    def versions(self) -> list[int]:
        """Return the version counters of the parameters."""
        return [p._version for p in self.subject.parameters]

    def _imprints(self) -> list[Imprint]:
        # Version counters miss what is put in a parameter's place by `p.data = …`.
        return [imprint_of_contents(p) for p in self.subject.parameters]

    def check_unchanged(self, versions: Sequence[int]) -> None:
        """Check that a backward pass has not changed parameters.

        Args:
            versions: The parameters' version counters before the backward pass.

        Raises:
            RecorderError: It has changed one.
        """
        for name, parameter, version in zip(self.subject.names, self.subject.parameters, versions, strict=True):
            if parameter._version != version:
                raise RecorderError(
                    f"{name} changed inside backward: an optimizer that steps in gradient hooks has no single step to "
                    "measure; call step() once, after backward."
                )

    def collect(self, backward: BackwardPass) -> None:
        """Add a backward pass to the step, and take the gradient that it left.

        Raises:
            RecorderError: A gradient is sparse.
        """
        collected = self._collected
        assert collected is not None
        for name, parameter in zip(self.subject.names, self.subject.parameters, strict=True):
            collected.arrivals[parameter] = collected.arrivals.get(parameter, 0) + backward.arrivals.get(parameter, 0)
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise RecorderError(
                    f"{name} has a sparse gradient, whose norms are not measured; use sparse=False in its embedding."
                )
        collected.passes.append(backward)
        collected.losses += [self._on_row_device(loss) for loss in backward.losses]
        collected.leaves += [(leaf, leaf._version) for leaf in backward.leaves]
        collected.gradient.take(scaled=backward.microbatches[0].scale is not None)

    def backward_ended(self) -> None:
        """Remember the imprint of one gradient, so that the next backward pass can be told from a new attempt's."""
        marked = self._mark[0] if self._mark is not None else None
        for parameter in ([marked] if marked is not None else []) + list(self.subject.parameters):
            if parameter.grad is not None:
                self._mark = (parameter, imprint(parameter.grad))
                return

    def contained(self) -> AbstractContextManager[None]:
        """Return a context that, after an error in its block, forgets the attempt and lets training go on if it can."""
        return self.faults.contained(self.forget)

    def forget(self) -> None:
        """Forget what has been collected, since the next step cannot be measured."""
        self._collected = None

    # --- the step ---

    def finished(self, *, watched: bool) -> Step:
        """Copy x_t, and return the collected backward passes as the step that is about to be taken.

        Args:
            watched: Whether the loop calls backward itself; decides which error message is raised.

        Raises:
            RecorderError: No backward pass was collected.
        """
        collected = self._collected
        if collected is None or not collected.passes:
            if self.begun and torch._C._current_graph_task_id() != -1:
                raise RecorderError(_INSIDE_BACKWARD)
            raise RecorderError((_NONE_WATCHED if watched else _NONE_COLLECTED).format(self.number))
        subject = self.subject
        restored = {*subject.parameters, *(companion.parameter for companion in collected.companions)}
        others_moved = any(leaf._version != version for leaf, version in collected.leaves if leaf not in restored)
        moved = self._imprints() != collected.imprints
        self._moved = self._moved + 1 if moved else 0
        if self._moved == _MOVED_STEPS:
            self.faults.say(_MOVED.format(subject.optimizer_name), kind="moved")
        active = subject.active()
        return Step(
            number=self.number,
            microbatches=tuple(microbatch for backward in collected.passes for microbatch in backward.microbatches),
            loss=joined(collected.losses),
            gradient=collected.gradient,
            segment=self._segment_of(active),
            active=active,
            lr=subject.rates(),
            flags=(int(Status.MOVED) if others_moved or moved else 0) | self._partial_flag(),
            arrivals=collected.arrivals,
            leaves=tuple(collected.leaves),
            companions=tuple(collected.companions),
            foreign=collected.foreign,
        )

    def finished_by(self, probes: ProbedStart) -> Step:
        """Copy x_t, and return the step that is about to be taken, its loss being the probes' mean."""
        gradient = StepGradient(self._keeper)
        gradient.tensors = probes.gradient
        active = self.subject.active()
        return Step(
            number=self.number,
            microbatches=probes.microbatches,
            loss=joined(probes.losses, len(probes.losses)),
            gradient=gradient,
            segment=self._segment_of(active),
            active=active,
            lr=self.subject.rates(),
            flags=self._partial_flag(),
            arrivals=probes.arrivals,
            foreign=probes.stale,
            noise=probes.noise,
            divisor=len(probes.losses),
        )

    def _partial_flag(self) -> int:
        """Return `PARTIAL` if an optimizer has gained parameters, and warn about it once; else 0."""
        if not self.subject.gained_parameters():
            return 0
        self.faults.say(
            f"The optimizer has gained parameters since the recorder was attached: from step {self.number} on, only "
            "the parameters that it had before are measured, the new ones are held where they are, and steps are "
            "flagged as partial; to measure all of them, attach a new recorder with a trace of its own.",
            kind="partial",
        )
        return int(Status.PARTIAL)

    def _segment_of(self, active: Sequence[int]) -> Segment:
        """Return a segment that begins at the present values of these parameters; its memory is used again."""
        moving = [self.subject.parameters[i] for i in active]
        if self._segment is None or not self._segment.fits(moving):
            self._segment = None
            self._segment = Segment(moving, offload=self._offload)
        self._segment.begin(moving)
        return self._segment

    def step_taken(self) -> None:
        """Note that the step is being taken: later backward passes belong to the next step."""
        self._collected = self._mark = None
        self._unseen = 0
        self.number += 1

    def close(self) -> None:
        """Release the memory."""
        self._collected = self._segment = None

    def _still_accumulating(self) -> bool:
        assert self._mark is not None
        parameter, then = self._mark
        return parameter.grad is not None and imprint(parameter.grad) == then

    def _skip_step(self) -> None:
        """Count and report the last attempt, which ended without an optimizer step (a scaler's skip, a `continue`)."""
        collected, self._collected, self._mark = self._collected, None, None
        if collected is not None and collected.losses:
            # The skipped step's row would come before that of a joint step still in progress; rows are in step order.
            self.joint.drop()
            moved = self._imprints() != collected.imprints
            flags = int(Status.NO_DISPLACEMENT) | (int(Status.MOVED) if moved else 0)
            self._skipped(SkippedStep(self.number, joined(collected.losses), self.subject.rates(), flags))
            self._unseen = self._unseen + 1 if moved else 0
            if self._unseen == UNSEEN_STEPS:
                self.faults.say(_UNSEEN.format(self.subject.optimizer_name), kind="unseen")
        self.number += 1
