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
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lsmooth.closures import Closure, frozen, reached
from lsmooth.errors import RecorderError
from lsmooth.replay import (
    AutocastState,
    Microbatch,
    ModuleState,
    RandomState,
    count_arrivals,
    reachable_leaves,
    replaying,
)

if TYPE_CHECKING:
    from lsmooth.recorder import Recorder

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class _Call:
    """One call of a watched function, and all that it takes to make it again."""

    fresh: Callable[[], Closure]
    random: RandomState
    modules: ModuleState
    autocast: AutocastState
    context: Callable[[], AbstractContextManager[None]]
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
    """What a recorder knows of the functions that it watches.

    Args:
        recorder: Whose watch it is.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._scaler: torch.amp.GradScaler | None = None
        self._backward: _Backward | None = None
        self._hooks: list[Any] = []
        self.on = False
        self.deaf = False

    def wrap(
        self,
        function: Function,
        scaler: torch.amp.GradScaler | None,
        during_replay: Callable[[], AbstractContextManager[Any]],
    ) -> Function:
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
        begun: list[Any] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            begun.clear()
            if self._listens():
                begun.append(self._begin_call(module, args, kwargs, contextlib.nullcontext))

        def after(_: nn.Module, args: tuple[Any, ...], returned: Any) -> None:
            if begun:
                self._end_call(begun.pop(), returned)

        # First to see the arguments and last to see the output: a replay goes through the other hooks again.
        self._hooks.append(module.register_forward_pre_hook(_Hook(before), prepend=True, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(_Hook(after)))

    def close(self) -> None:
        """Stop watching; what was wrapped stays usable, and does what it did before."""
        self._abandon()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    # --- a call ---

    def _listens(self) -> bool:
        recorder = self._recorder
        return recorder._open and not recorder._probes and torch.is_grad_enabled() and not self.deaf and not replaying()

    def _begin_call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        during_replay: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[Any, ...] | None:
        recorder = self._recorder
        # A backward that ended in an exception never told us so.
        self._abandon()
        if not recorder._wants_backward():
            return None
        models, generators = reached(function, args, kwargs, recorder._model)
        return (
            _again(function, args, kwargs, during_replay),
            RandomState.capture(*generators),
            ModuleState.capture(*models),
            AutocastState.capture(recorder._device.type),
            recorder._ranks.context(),
        )

    def _end_call(self, begun: tuple[Any, ...] | None, returned: Any) -> None:
        loss = loss_in(returned)
        if loss is None or loss.grad_fn is None:
            if returned is None:
                # Frameworks let a training step return None to say that this batch is to be passed over.
                self._recorder._pass_over()
            return
        call = None
        if begun is not None:
            fresh, random, modules, autocast, context = begun
            leaves = reachable_leaves(loss)
            call = _Call(fresh, random, modules.without_unchanged(), autocast, context, loss.detach().clone(), leaves)
        loss.register_hook(lambda gradient: self._backward_from(call, gradient))

    # --- a backward pass ---

    @torch.no_grad()
    def _backward_from(self, call: _Call | None, gradient: Tensor) -> None:
        """Take note that a backward pass arrives at a watched loss, with this gradient."""
        recorder = self._recorder
        if not recorder._open:
            return
        backward = self._backward
        if backward is None:
            backward = self._backward = _Backward()
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._wait_for_others(backward))
            if call is not None and recorder._wants_backward():
                recorder._begin_attempt()
                backward.versions = [p._version for p in recorder._parameters]
                backward.hooks = count_arrivals(recorder._parameters, backward.arrivals)
            else:
                # Zeroing gradients between forward and backward can end a skipped step: what was captured for it does
                # not serve the next one, which goes unmeasured.
                recorder._pass_over()
        if call is not None and recorder._current is not None:
            backward.calls.append((call, gradient.detach().clone(), AutocastState.capture(recorder._device.type)))

    def _wait_for_others(self, backward: _Backward) -> None:
        # What DistributedDataParallel does at the end of a backward pass was asked for after this, and comes first.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self._backward_ended(backward))

    @torch.no_grad()
    def _backward_ended(self, backward: _Backward) -> None:
        recorder = self._recorder
        backward.end()
        if self._backward is not backward:
            return
        self._backward = None
        if backward.calls and recorder._current is not None:
            recorder._check_unchanged(recorder._parameters, backward.versions, [recorder])
            factor = None
            if self._scaler is not None and self._scaler.is_enabled():
                factor = self._scaler.scale(torch.ones((), device=recorder._device))
            microbatches: list[Microbatch] = []
            losses: list[Tensor] = []
            for call, seed, autocast in backward.calls:
                weight = seed if factor is None else seed / factor.to(seed.device)
                microbatches.append(
                    Microbatch(
                        call.fresh,
                        call.random,
                        call.modules,
                        call.autocast,
                        scale=factor,
                        weight=weight,
                        seed=seed,
                        backward_autocast=autocast,
                        context=call.context,
                    )
                )
                losses.append(call.loss * weight)
            leaves = [leaf for call, _, _ in backward.calls for leaf in call.leaves]
            recorder._collect(microbatches, losses, backward.arrivals, leaves)
        recorder._leave_mark()

    def _abandon(self) -> None:
        if self._backward is not None:
            self._backward.end()
            self._backward = None
            self._recorder._current = None


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
