"""Call functions before and after each step of an optimizer, also where its class does not support step hooks."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

# Takes the optimizer and the positional and keyword arguments of its step, the optimizer first. May return replacements
# for both; None keeps them.
Before = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, Any] | None]
After = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


class Handle(Protocol):
    """Removes a hook."""

    def remove(self) -> None:
        """Remove the hook."""


def hook_steps(optimizer: Any, before: Before, after: After) -> Sequence[Handle]:
    """Call functions around each step of an optimizer.

    torch's optimizers call step hooks themselves. A wrapper that never initialises `torch.optim.Optimizer` does not
    (most Lookahead implementations, `ScheduleFreeWrapper`). A class whose `step` calls its parent's `step` may call
    hooks twice. In both cases the object's own `step` is replaced.

    Args:
        optimizer: The optimizer.
        before: Called before each step.
        after: Called after each step that raised no exception.
    """
    if _calls_hooks_once(optimizer):
        return [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    return [_ReplacedStep(optimizer, before, after)]


def can_be_hooked(optimizer: Any) -> bool:
    """Say whether `hook_steps` accepts an object: it has `step` and `param_groups`, and takes new attributes."""
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
    # A wrapper may have made these attributes itself without ever calling the hooks in them.
    initialised = all(isinstance(held, OrderedDict) for held in hooks) and hooks[0] is not hooks[1]
    return initialised and len(written) == 1


class _ReplacedStep:
    """Replaces the `step` attribute of one optimizer object until removed."""

    def __init__(self, optimizer: Any, before: Before, after: After) -> None:
        self._removed = False
        self._optimizer = optimizer
        self._own = vars(optimizer).get("step")
        real = optimizer.step

        # Copies and pickles of the optimizer look the method up by this name.
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

        # Learning rate schedulers read `step.__func__`, which only a bound method has.
        self._step = types.MethodType(step, optimizer)
        vars(optimizer)["step"] = self._step

    def remove(self) -> None:
        """Put the optimizer's own `step` back; if it was replaced again since, only stop calling the functions."""
        self._removed = True
        if vars(self._optimizer).get("step") is not self._step:
            return
        if self._own is None:
            del vars(self._optimizer)["step"]
        else:
            vars(self._optimizer)["step"] = self._own
