"""Capture a loss where it is computed, so that a loop which calls `loss.backward()` itself can be measured.

A call of the watched function keeps what it takes to evaluate it again. The gradient that later arrives at the loss it
returned says what the loop made of that loss (its share in an accumulated one, a scaler's factor), and that this
backward pass belongs to the step.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lsmooth.errors import RecorderError
from lsmooth.loop.attempt import Attempts
from lsmooth.loop.backward import factor_of
from lsmooth.loop.step import BackwardPass
from lsmooth.replay.arrivals import count_arrivals
from lsmooth.replay.closures import Closure, frozen
from lsmooth.replay.microbatch import Microbatch, reachable_leaves, replaying
from lsmooth.replay.state import AutocastState, Surroundings

Function = TypeVar("Function", bound=Callable[..., Any])
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class _Begun:
    """What it takes to make a call of a watched function again."""

    fresh: Callable[[], Closure]
    surroundings: Surroundings


@dataclass(frozen=True)
class _Call:
    """A call of a watched function that has returned a loss."""

    begun: _Begun
    loss: Tensor
    leaves: list[Tensor]


@dataclass
class _Backward:
    """A backward pass in progress: the watched losses that it started from, and what it has delivered so far."""

    calls: list[tuple[_Call, Tensor, AutocastState]] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    arrivals: dict[Tensor, int] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)

    def end(self) -> None:
        for hook in self.hooks:
            hook.remove()


class _Hook:
    """A hook that stays with its module: a copy of that, or a file it is saved to, gets one that does nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        # Takes any arguments, returns None, and is found where lsmooth is not installed.
        return getattr, (contextlib.nullcontext(), "__exit__")


class Watch:
    """The functions that a recorder watches.

    Args:
        attempts: Collects the backward passes from their losses.
        context: Returns a factory of contexts in which a loss is evaluated as it would be now.

    Attributes:
        on: Whether anything is watched.
        deaf: Whether losses are no business of it now: a recorder computes them itself.
    """

    def __init__(self, attempts: Attempts, context: Callable[[], Callable[[], AbstractContextManager[None]]]) -> None:
        self._attempts = attempts
        self._context = context
        self._scaler: torch.amp.GradScaler | None = None
        self._backward: _Backward | None = None
        self._hooks: list[Any] = []
        self._closed = False
        self.on = False
        self.deaf = False

    def wrap(self, function: Function, scaler: torch.amp.GradScaler | None, during_replay: Context) -> Function:
        """Return `function`, watched."""
        self.on = True
        self._scaler = scaler

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self._listens():
                return function(*args, **kwargs)
            begun = self._begin_call(function, args, kwargs, during_replay)
            returned = function(*args, **kwargs)
            self._end_call(begun, returned)
            return returned

        return watched  # type: ignore[return-value]

    def hook_forward(self, module: nn.Module, scaler: torch.amp.GradScaler | None) -> None:
        """Watch every call of `module`."""
        self.on = True
        self._scaler = scaler
        calls: list[_Begun | None] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.clear()
            if self._listens():
                calls.append(self._begin_call(module, args, kwargs, contextlib.nullcontext))

        def after(_: nn.Module, args: tuple[Any, ...], returned: Any) -> None:
            if calls:
                self._end_call(calls.pop(), returned)

        # First to see the arguments and last to see the output: a replay goes through the other hooks again.
        self._hooks.append(module.register_forward_pre_hook(_Hook(before), prepend=True, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(_Hook(after)))

    def close(self) -> None:
        """Stop watching; what was wrapped stays usable, and does what it did before."""
        self._closed = True
        self._abandon()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    # --- a call ---

    def _listens(self) -> bool:
        heard = not self._closed and self._attempts.collects and not self.deaf
        return heard and torch.is_grad_enabled() and not replaying()

    def _begin_call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], during_replay: Context
    ) -> _Begun | None:
        # A backward that ended in an exception never told us so.
        self._abandon()
        if not self._attempts.backward_begins():
            return None
        subject = self._attempts.subject
        with self._attempts.contained():
            surroundings = Surroundings.capture(
                function, args, kwargs, subject.model, device_type=subject.device.type, context=self._context()
            )
            return _Begun(_again(function, args, kwargs, during_replay), surroundings)
        return None

    def _end_call(self, begun: _Begun | None, returned: Any) -> None:
        loss = loss_in(returned)
        if loss is None or loss.grad_fn is None:
            if returned is None:
                # Frameworks let a training step return None to say that this batch is to be passed over.
                self._attempts.pass_over()
            return
        call = None
        if begun is not None:
            begun = _Begun(begun.fresh, begun.surroundings.without_unchanged())
            call = _Call(begun, loss.detach().clone(), reachable_leaves(loss))
        loss.register_hook(lambda gradient: self._backward_from(call, gradient))

    # --- a backward pass ---

    @torch.no_grad()
    def _backward_from(self, call: _Call | None, gradient: Tensor) -> None:
        """Take note that a backward pass arrives at a watched loss, with this gradient."""
        attempts = self._attempts
        if self._closed:
            return
        backward = self._backward
        if backward is None:
            backward = self._backward = _Backward()
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._wait_for_others(backward))
            if call is not None and attempts.backward_begins():
                with attempts.contained():
                    attempts.begin()
                backward.versions = attempts.versions()
                backward.hooks = count_arrivals(attempts.subject.parameters, backward.arrivals)
            else:
                # Zeroing gradients between forward and backward can end a skipped step: what was captured for it does
                # not serve the next one, which goes unmeasured.
                attempts.pass_over()
        if call is not None and attempts.begun:
            autocast = AutocastState.capture(attempts.subject.device.type)
            backward.calls.append((call, gradient.detach().clone(), autocast))

    def _wait_for_others(self, backward: _Backward) -> None:
        # What DistributedDataParallel does at the end of a backward pass was asked for after this, and comes first.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self._backward_ended(backward))

    @torch.no_grad()
    def _backward_ended(self, backward: _Backward) -> None:
        attempts = self._attempts
        backward.end()
        if self._backward is not backward:
            return
        self._backward = None
        if backward.calls and attempts.begun:
            with attempts.contained():
                attempts.check_unchanged(backward.versions)
                attempts.collect(self._collected(backward))
        attempts.backward_ended()

    def _collected(self, backward: _Backward) -> BackwardPass:
        """Return what a backward pass that is over has started from and left."""
        factor = factor_of(self._scaler, self._attempts.subject.device)
        microbatches: list[Microbatch] = []
        losses: list[Tensor] = []
        for call, seed, autocast in backward.calls:
            weight = seed if factor is None else seed / factor.to(seed.device)
            microbatches.append(
                Microbatch(
                    call.begun.fresh,
                    call.begun.surroundings,
                    scale=factor,
                    weight=weight,
                    seed=seed,
                    backward_autocast=autocast,
                )
            )
            losses.append(call.loss * weight)
        leaves = tuple(leaf for call, _, _ in backward.calls for leaf in call.leaves)
        return BackwardPass(tuple(microbatches), tuple(losses), backward.arrivals, leaves)

    def _abandon(self) -> None:
        if self._backward is not None:
            self._backward.end()
            self._backward = None
            self._attempts.forget()


def loss_in(returned: Any) -> Tensor | None:
    """Return the loss in what a watched call returned: itself, its `.loss`, item "loss", or first item; else None."""
    loss = returned
    if isinstance(returned, Mapping):
        loss = returned.get("loss")
    elif isinstance(getattr(returned, "loss", None), Tensor):
        loss = returned.loss
    elif isinstance(returned, Sequence) and returned:
        loss = returned[0]
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad else None


def _again(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    during_replay: Callable[[], AbstractContextManager[Any]],
) -> Callable[[], Closure]:
    """Return a factory of closures that make a call again, with the arguments as they are now, and return its loss."""
    fresh = frozen(function)
    arguments = _containers_copied((args, dict(kwargs)))
    inputs = [item for item in pytree.tree_leaves(arguments) if isinstance(item, Tensor)]
    versions = [item._version for item in inputs]

    def thaw() -> Closure:
        function = fresh()

        def closure() -> Tensor:
            if [item._version for item in inputs] != versions:
                raise RecorderError(
                    "An input of the loss was overwritten in place before optimizer.step(), so that the loss cannot be "
                    "evaluated again; give each batch tensors of its own."
                )
            args, kwargs = _containers_copied(arguments)
            with during_replay():
                loss = loss_in(function(*args, **kwargs))
            if loss is None:
                raise RecorderError("The watched function returned a loss the first time, and none when called again.")
            return loss

        return closure

    return thaw


def _containers_copied(value: Any) -> Any:
    """Return a value whose dicts, lists and tuples are new, with the same things in them: callees take items out."""
    return pytree.tree_map(lambda leaf: copy.copy(leaf) if isinstance(leaf, MutableMapping) else leaf, value)
