"""A backward pass that a recorder runs in place of the loop, collected for every recorder on the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lsmooth.loop.attempt import Attempts
from lsmooth.loop.step import BackwardPass
from lsmooth.replay.arrivals import counted_arrivals
from lsmooth.replay.closures import Closure, frozen
from lsmooth.replay.microbatch import Microbatch, loss_of, reachable_leaves
from lsmooth.replay.state import Surroundings


def collected_backward(
    closure: Closure,
    scaler: torch.amp.GradScaler | None,
    surroundings: Surroundings,
    attempts: Sequence[Attempts],
) -> Any:
    """Run a closure and backward from the loss that it returns; each attempt collects it.

    Args:
        closure: Returns the loss, or a tuple whose first item is the loss.
        scaler: The gradient scaler, where one is used.
        surroundings: What the closure finds around it.
        attempts: Those of the recorders whose next step is measured.

    Returns:
        What the closure returned.

    Raises:
        RecorderError: The closure returns no scalar loss, or the step cannot be measured.
    """
    fresh = frozen(closure)
    for attempt in attempts:
        attempt.begin()
    parameters = list(dict.fromkeys(p for attempt in attempts for p in attempt.subject.parameters))
    returned = closure()
    loss = loss_of(returned)
    leaves = tuple(reachable_leaves(loss))
    scale = factor_of(scaler, loss.device)
    versions = [attempt.versions() for attempt in attempts]
    with counted_arrivals(parameters) as arrivals:
        (loss if scaler is None else scaler.scale(loss)).backward()
    microbatch = Microbatch(fresh, surroundings.without_unchanged(), scale)
    backward = BackwardPass((microbatch,), (loss.detach(),), arrivals, leaves)
    with forgotten_on_error(attempts):
        for attempt, before in zip(attempts, versions, strict=True):
            attempt.check_unchanged(before)
        for attempt in attempts:
            attempt.collect(backward)
    return returned


def factor_of(scaler: torch.amp.GradScaler | None, device: torch.device) -> Tensor | None:
    """Return the factor that a scaler multiplies losses by, a scalar tensor; None without one."""
    if scaler is None or not scaler.is_enabled():
        return None
    return scaler.scale(torch.ones((), device=device))


@contextmanager
def forgotten_on_error(attempts: Sequence[Attempts]) -> Iterator[None]:
    """Run a block after whose exception the attempts have nothing collected."""
    try:
        yield
    except BaseException:
        for attempt in attempts:
            attempt.forget()
        raise
