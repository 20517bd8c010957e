"""One joint step of one or several optimizers: which of them have taken it, and when it is over.

A joint step begins when the first optimizer is about to step. It is over
- when all optimizers have stepped, in any order; or else
- when the next backward pass begins, or an optimizer that has stepped is about to step again. The optimizers that have
  not stepped by then sat this step out.

In the second case the end is noticed before parameters change again, so that the parameters still are x_{t+1}.
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

# torch.compile must not trace the hooks when it compiles `optimizer.step`. As in torch's own optimizers, the compiler
# is imported when a hook is first called; `torch.compiler.disable` would import it with this module.
_untraced = getattr(torch, "_disable_dynamo", lambda function: function)

# After this number of consecutive unseen steps, the user is warned.
UNSEEN_STEPS = 3
_UNSEEN = (
    "The parameters of {0} changed at {1} steps in a row without a call of its step() being seen, and these steps are "
    "flagged; give the recorder the {0} whose step() the loop calls."
)

_DROPPED = "A step that only some of the optimizers had taken is not measured, since the loop skipped the next step."


class JointStep:
    """The joint step in progress, followed by hooks on its optimizers.

    Args:
        optimizers: The optimizers that take each step together.
        faults: Keeps errors from the loop.
        begin: Called just before the first optimizer changes parameters, and after the closure where `step()` is given
            one that computes the gradient.
        taken: Called once the first optimizer has stepped: later backward passes belong to the next step.
        end: Called when the step is over and the parameters are x_{t+1}. Its argument says whether anything but the
            optimizers has changed parameters since the first of them stepped.
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
        # While only some optimizers have stepped: the version counters of all parameters, whether anything else has
        # changed a parameter, and whether the next backward pass has begun.
        self._versions: list[int] = []
        self._moved = False
        self._over = False
        self._arrivals: list[RemovableHandle] = []
        # For each optimizer that sat the last step out: the version counters of its parameters then, and at how many
        # such steps in a row they have changed.
        self._unseen: dict[torch.optim.Optimizer, tuple[list[int], int]] = {}
        self._hooks: list[Handle] = []

    def attach(self) -> None:
        """Install the hooks on the optimizers."""
        self._hooks = [
            hook for optimizer in self._optimizers for hook in hook_steps(optimizer, self._before, self._after)
        ]

    def left_over(self) -> set[Tensor]:
        """Return the parameters of optimizers that sat the last step out; `.grad` may hold that step's gradient."""
        return {p for optimizer in self._absent for p in parameters_of(optimizer)}

    def finish_if_over(self) -> None:
        """End the step in progress if the next backward pass has begun."""
        if self._over:
            self.finish()

    def finish(self) -> None:
        """End the step in progress, if at least one optimizer has taken it."""
        if not self._stepped:
            return
        moved = self._moved or bool(self._absent and self._versions != self._versions_now())
        self._look_for_unseen()
        late = self._absent
        self._forget()
        with contextlib.ExitStack() as stack:
            # The next step's graph may exist already. Measuring moves parameters and puts them back, and autograd must
            # not see these writes.
            for parameter in self._parameters() if late else ():
                for tensor in (parameter, parameter.grad):
                    if tensor is not None:
                        stack.enter_context(_unsafe_preserve_version_counter(tensor))
            self._end(moved)

    def drop(self) -> None:
        """Give up the step in progress unmeasured, and warn."""
        if self._stepped:
            self._forget()
            self._give_up()
            self._faults.say(_DROPPED, kind="dropped")

    def close(self) -> None:
        """Remove all hooks."""
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
        """Note that an optimizer is about to change parameters."""
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
        """Yield hooks that notice the next backward pass.

        One parameter with a gradient is enough for each optimizer; all its parameters are hooked where none has one.
        """

        def arrived(_: Tensor) -> None:
            # A replay of another recorder also runs backward passes. The step is not ended here, in the middle of a
            # backward pass, but at the next call outside of it.
            self._over = self._over or not replaying()

        for optimizer in self._optimizers:
            trained = [p for p in parameters_of(optimizer) if p.requires_grad]
            for parameter in [p for p in trained if p.grad is not None][:1] or trained:
                yield parameter.register_post_accumulate_grad_hook(arrived)

    def _versions_now(self) -> list[int]:
        return [p._version for p in self._parameters()]

    def _parameters(self) -> list[Tensor]:
        return [p for optimizer in self._optimizers for p in parameters_of(optimizer)]

    def _look_for_unseen(self) -> None:
        """Warn about an optimizer whose parameters change although its steps are not seen."""
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
