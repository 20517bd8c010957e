"""Optimizer steps that are given a closure, which computes the gradient inside the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lsmooth.errors import RecorderError
from lsmooth.loop.faults import Faults


def closure_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether the arguments of `optimizer.step`, the optimizer first, hold a closure."""
    return any(callable(value) and not isinstance(value, Tensor) for value in (*args[1:], kwargs.get("closure")))


def with_closure_followed(
    optimizer: torch.optim.Optimizer,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    faults: Faults,
    gradient_is_there: Callable[[], None],
    give_up: Callable[[], None],
) -> tuple[Any, Any]:
    """Return the arguments of `optimizer.step` with a closure that reports when it has computed the gradient.

    Args:
        optimizer: The optimizer that steps.
        args: Positional arguments of the step, the optimizer first.
        kwargs: Keyword arguments of the step.
        faults: Decides whether a step that calls its closure twice is an error.
        gradient_is_there: Called after the closure, before the step changes anything.
        give_up: Called when the step calls its closure a second time, before the error is raised or warned about.
    """
    calls = 0

    def followed(closure: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            nonlocal calls
            calls += 1
            if calls > 1:
                with faults.contained(give_up):
                    raise RecorderError(
                        f"{type(optimizer).__name__}.step called its closure twice, so that there is no single step to "
                        "measure; use an optimizer that evaluates the loss once a step."
                    )
            returned = closure()
            if calls == 1:
                gradient_is_there()
            return returned

        return run

    if callable(kwargs.get("closure")):
        return args, {**kwargs, "closure": followed(kwargs["closure"])}
    return tuple(
        followed(value) if i and callable(value) and not isinstance(value, Tensor) else value
        for i, value in enumerate(args)
    ), kwargs
