"""Functions called before and after each step of an optimizer, whether its class calls hooks or not."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

# Takes the optimizer, and the arguments of its step, the optimizer first; may return other arguments.
Before = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, Any] | None]
After = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


class Handle(Protocol):
    """What takes a hook off again."""

    def remove(self) -> None:
        """Take it off."""


def hook_steps(optimizer: Any, before: Before, after: After) -> Sequence[Handle]:
    """Call functions around each step of an optimizer.

    Optimizers of torch call such hooks themselves. A wrapper that never initialises `torch.optim.Optimizer` does not
    (Lookahead as most write it, `ScheduleFreeWrapper`), and a class whose `step` calls its parent's may call them
    twice: there the object's own `step` is replaced.

    Args:
        optimizer: Whose steps they are.
        before: Called before each.
        after: Called after each that has raised nothing.
    """
    if _calls_hooks_once(optimizer):
        return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    return [_ReplacedStep(optimizer, before, after)]


def can_be_hooked(optimizer: Any) -> bool:
    """Say whether `hook_steps` takes an object: one that steps parameters, and can be given attributes."""
    return (
        callable(getattr(optimizer, "step", None))
        and hasattr(optimizer, "param_groups")
        and hasattr(optimizer, "__dict__")
    )


def _calls_hooks_once(optimizer: Any) -> bool:
    kind, base = type(optimizer), torch.optim.Optimizer
    if not isinstance(optimizer, base) or not getattr(kind.step, "hooked", False):
        return False
    written = [parent for parent in kind.__mro__ if "step" in vars(parent) and parent is not base]
    hooks = [vars(optimizer).get(f"_optimizer_step_{when}_hooks") for when in ("pre", "post")]
    # A wrapper may have made these itself, to please whoever looks for them.
    initialised = all(isinstance(held, OrderedDict) for held in hooks) and hooks[0] is not hooks[1]
    return initialised and len(written) == 1


class _ReplacedStep:
    """Stands in an optimizer's place for its `step`, until removed."""

    def __init__(self, optimizer: Any, before: Before, after: After) -> None:
        self._removed = False
        self._optimizer = optimizer
        self._own = vars(optimizer).get("step")
        real = optimizer.step

        # A copy of the optimizer, and what was saved of it, find the method of this name.
        @functools.wraps(real)
        def step(self_: Any, *args: Any, **kwargs: Any) -> Any:
            if self._removed or self_ is not optimizer:
                return real(*args, **kwargs) if self_ is optimizer else type(self_).step(self_, *args, **kwargs)
            changed = before(optimizer, (optimizer, *args), kwargs)
            if changed is not None:
                (_, *args), kwargs = changed  # type: ignore[assignment]
            returned = real(*args, **kwargs)
            after(optimizer, (optimizer, *args), kwargs)
            return returned

        # Schedulers of learning rates ask for the function of a bound method.
        self._step = types.MethodType(step, optimizer)
        vars(optimizer)["step"] = self._step

    def remove(self) -> None:
        """Put the optimizer's own `step` back; where another stands over it by now, do nothing any more when called."""
        self._removed = True
        if vars(self._optimizer).get("step") is not self._step:
            return
        if self._own is None:
            del vars(self._optimizer)["step"]
        else:
            vars(self._optimizer)["step"] = self._own
