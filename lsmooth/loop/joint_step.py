"""One step of one or several optimizers: which of them have taken part in it, and when it is over.

A step begins when the first of its optimizers is about to step, and is over
- when all of them have stepped, in any order; or else
- when the next backward pass begins, or one that has stepped is about to step again: the others sat this step out.

In the second case the step is known to be over, at the latest, before parameters change again: x_{t+1} is still there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils.hooks import RemovableHandle

from lsmooth.loop.faults import Faults
from lsmooth.loop.step_closure import closure_given, with_closure_followed
from lsmooth.loop.step_hooks import Handle, hook_steps
from lsmooth.loop.subject import parameters_of
from lsmooth.replay.microbatch import replaying

# Compiling `optimizer.step` is not to trace hooks. As in torch's own optimizers, this imports the compiler when a hook
# is first called; `torch.compiler.disable` would import it here.
_untraced = getattr(torch, "_disable_dynamo", lambda function: function)

# So many steps in a row that are not seen are no coincidence.
UNSEEN_STEPS = 3
_UNSEEN = (
    "The parameters of {0} changed at {1} steps in a row at which no step() of it was seen, which flags these steps; "
    "give the recorder the {0} whose step() the loop calls."
)

_DROPPED = "A step that some of the optimizers had taken is not measured, since the one after it was skipped meanwhile."


class JointStep:
    """The step in progress, as the hooks of its optimizers tell of it.

    Args:
        optimizers: Those that take the step together.
        faults: Keeps errors from the loop.
        begin: Called just before the first of them changes parameters; where `step()` is given a closure that computes
            the gradient, after that.
        taken: Called once the first of them has stepped: what comes from now on belongs to the next step.
        end: Called when the step is over, x_{t+1} being there; told whether something else has changed parameters
            since the first of them stepped.
        give_up: Called when the step cannot be measured.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        faults: Faults,
        begin: Callable[[], None],
        taken: Callable[[], None],
        end: Callable[[bool], None],
        give_up: Callable[[], None],
    ) -> None:
        self._optimizers = tuple(optimizers)
        self._faults = faults
        self._begin, self._taken, self._end, self._give_up = begin, taken, end, give_up
        self._stepped: list[torch.optim.Optimizer] = []
        self._absent: list[torch.optim.Optimizer] = []
        # Of a step that some have taken and others have not: versions of all parameters, whether anything else has
        # changed these, and whether the next backward pass has begun.
        self._versions: list[int] = []
        self._moved = False
        self._over = False
        self._arrivals: list[RemovableHandle] = []
        # By optimizer that sat steps out: versions of its parameters at the end of the last, and how often they moved.
        self._unseen: dict[torch.optim.Optimizer, tuple[list[int], int]] = {}
        self._hooks: list[Handle] = []

    def attach(self) -> None:
        """Hear of the optimizers' steps from now on."""
        self._hooks = [
            hook for optimizer in self._optimizers for hook in hook_steps(optimizer, self._before, self._after)
        ]

    def left_over(self) -> set[Tensor]:
        """Return parameters of optimizers that sat the last step out: their `.grad` may hold that step's gradient."""
        return {p for optimizer in self._absent for p in parameters_of(optimizer)}

    def finish_if_over(self) -> None:
        """End the step in progress if it is known to be over."""
        if self._over:
            self.finish()

    def finish(self) -> None:
        """End the step in progress, if some of the optimizers have taken it."""
        if not self._stepped:
            return
        moved = self._moved or bool(self._absent and self._versions != self._versions_now())
        self._look_for_unseen()
        late = self._absent
        self._forget()
        with contextlib.ExitStack() as stack:
            # The next step's gradient may be there already, and its graph: for the loop, nothing has been written to.
            for parameter in self._parameters() if late else ():
                for tensor in (parameter, parameter.grad):
                    if tensor is not None:
                        stack.enter_context(_unsafe_preserve_version_counter(tensor))
            self._end(moved)

    def drop(self) -> None:
        """Give up the step in progress, which its optimizers have taken unmeasured."""
        if self._stepped:
            self._forget()
            self._give_up()
            self._faults.say(_DROPPED, kind="dropped")

    def close(self) -> None:
        """Take the hooks off."""
        self._forget()
        for hook in self._hooks:
            hook.remove()

    # --- hooks ---

    @_untraced
    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        with self._faults.contained(self._give_up):
            if _among(optimizer, self._stepped):
                self.finish()
            if closure_given(args, kwargs):
                return with_closure_followed(optimizer, args, kwargs, self._faults, self._about_to, self._give_up)
            self._about_to()
        return None

    def _about_to(self) -> None:
        """Take note that parameters are about to change."""
        self.finish_if_over()
        if not self._stepped:
            self._begin()
        elif self._versions != self._versions_now():
            self._moved = True

    @_untraced
    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._stepped.append(optimizer)
        self._absent = [other for other in self._optimizers if not _among(other, self._stepped)]
        if len(self._stepped) == 1:
            self._taken()
        if not self._absent:
            self.finish()
            return
        self._versions = self._versions_now()
        if not self._arrivals:
            self._arrivals = list(self._hooks_on_gradients())

    def _hooks_on_gradients(self) -> Iterator[RemovableHandle]:
        """Yield hooks that hear of the next backward pass, on one parameter of each optimizer that has a gradient."""

        def arrived(_: Tensor) -> None:
            # Another recorder may evaluate its own step again meanwhile. Nothing is measured amid a backward pass.
            self._over = self._over or not replaying()

        for optimizer in self._optimizers:
            trained = [p for p in parameters_of(optimizer) if p.requires_grad]
            # Of one that has no gradient yet, nobody knows which parameters will get one.
            for parameter in [p for p in trained if p.grad is not None][:1] or trained:
                yield parameter.register_post_accumulate_grad_hook(arrived)

    def _versions_now(self) -> list[int]:
        return [p._version for p in self._parameters()]

    def _parameters(self) -> list[Tensor]:
        return [p for optimizer in self._optimizers for p in parameters_of(optimizer)]

    def _look_for_unseen(self) -> None:
        """Warn of an optimizer whose parameters move though its steps are not seen."""
        found: dict[torch.optim.Optimizer, tuple[list[int], int]] = {}
        for optimizer in self._absent:
            now = [p._version for p in parameters_of(optimizer)]
            then, count = self._unseen.get(optimizer, (now, 0))
            count = count + 1 if now != then else 0
            if count == UNSEEN_STEPS:
                self._faults.say(_UNSEEN.format(type(optimizer).__name__, count), kind="unseen")
            found[optimizer] = (now, count)
        self._unseen = found

    def _forget(self) -> None:
        self._stepped, self._versions, self._moved, self._over = [], [], False, False
        for hook in self._arrivals:
            hook.remove()
        self._arrivals = []


def _among(optimizer: torch.optim.Optimizer, others: Sequence[torch.optim.Optimizer]) -> bool:
    return any(optimizer is other for other in others)
