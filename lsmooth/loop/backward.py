"""`Recorder.backward`: runs a closure and the backward pass, and collects them for every recorder on the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsmooth.errors import RecorderError
from lsmooth.loop.attempt import Attempts
from lsmooth.loop.step import BackwardPass
from lsmooth.replay.arrivals import counted_arrivals
from lsmooth.replay.microbatch import Closure, Microbatch, detached, dtypes_of, loss_of, reachable_leaves
from lsmooth.replay.outside import graphs_read, made_outside
from lsmooth.replay.state import Surroundings


@dataclass(frozen=True)
class _Prepared:
    """What is needed to evaluate a closure again, and the attempts that collect its backward pass."""

    closure: Closure
    surroundings: Surroundings
    attempts: list[Attempts]
    graphs: list[tuple[str, Tensor]]


def run_backward(
    closure: Closure,
    scaler: torch.amp.GradScaler | None,
    attempts: Sequence[Attempts],
    context: Callable[[], AbstractContextManager[None]],
) -> Any:
    """Run a closure and backward from its loss; recorders whose next step is measured collect the backward pass.

    Args:
        closure: Returns the loss, or a tuple whose first item is the loss. Once a step has been measured it may return
            None, which skips the batch.
        scaler: The gradient scaler, if one is used.
        attempts: The attempts of all recorders on the model.
        context: Makes the context in which forward and backward of a replay run.

    Returns:
        What the closure returned, detached from the graph.

    Raises:
        RecorderError: The closure returns no scalar loss, or the first measured step cannot be measured.
    """
    for attempt in attempts:
        attempt.joint.finish()
    prepared = _prepared(closure, [attempt for attempt in attempts if attempt.backward_begins()], context)
    returned = closure()
    if returned is None and any(attempt.faults.measured for attempt in attempts):
        for attempt in attempts:
            attempt.pass_over()
        return None
    loss = loss_of(returned)
    if prepared is None:
        (loss if scaler is None else scaler.scale(loss)).backward()
    else:
        _collect(prepared, closure, loss, scaler)
    for attempt in attempts:
        attempt.backward_ended()
    # The next replay of a CUDA graph overwrites what the graph has returned.
    in_graphs = prepared is not None and any(attempt.in_graphs for attempt in prepared.attempts)
    return detached(returned, copy=in_graphs)


def _prepared(
    closure: Closure, attempts: Sequence[Attempts], context: Callable[[], AbstractContextManager[None]]
) -> _Prepared | None:
    """Begin a measured step; return None if no recorder can measure it."""
    begun: list[Attempts] = []
    surroundings: Surroundings | None = None
    for attempt in attempts:
        with attempt.contained():
            if surroundings is None:
                subject = attempt.subject
                surroundings = Surroundings.capture(
                    closure,
                    subject.model,
                    device_type=subject.device.type,
                    trained=subject.trained(),
                    context=context,
                )
            attempt.begin()
            begun.append(attempt)
    if surroundings is None or not begun:
        return None
    return _Prepared(closure, surroundings, begun, graphs_read(closure))


def _collect(prepared: _Prepared, closure: Closure, loss: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    """Run backward from the loss that a closure has returned, and hand it to the attempts."""
    parameters = list(dict.fromkeys(p for attempt in prepared.attempts for p in attempt.subject.parameters))
    # Before backward, so that unneeded copies are freed before gradients need memory.
    surroundings = prepared.surroundings.without_unchanged()
    leaves, dtypes = tuple(reachable_leaves(loss)), dtypes_of(loss)
    outside = made_outside(prepared.graphs, loss)
    again = prepared.closure if outside is None else functools.partial(refused, outside)
    scale = factor_of(scaler, loss.device)
    versions = [attempt.versions() for attempt in prepared.attempts]
    with counted_arrivals(parameters) as arrivals:
        (loss if scaler is None else scaler.scale(loss)).backward()
    microbatch = Microbatch(again, surroundings, scale, dtypes=dtypes)
    backward = BackwardPass((microbatch,), (loss.detach(),), arrivals, leaves)
    for attempt, before in zip(prepared.attempts, versions, strict=True):
        with attempt.contained():
            attempt.check_unchanged(before)
            attempt.collect(backward)


def refused(sentence: str) -> Tensor:
    """Replace a closure that cannot be evaluated again: the error is raised only when a replay evaluates it."""
    raise RecorderError(sentence)


def factor_of(scaler: torch.amp.GradScaler | None, device: torch.device) -> Tensor | None:
    """Return the factor by which a scaler multiplies losses, a scalar tensor; None if no scaler is in use."""
    if scaler is None or not scaler.is_enabled():
        return None
    return scaler.scale(torch.ones((), device=device))
