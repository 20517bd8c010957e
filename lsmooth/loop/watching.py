"""Capture a loss where it is computed, so that a loop which calls `loss.backward()` itself can be measured.

A call of the watched function keeps what is needed to evaluate it again. When a gradient later arrives at the loss that
the call returned, the backward pass belongs to the step. The value of that gradient says how the loop weighted the loss
(its share in an accumulated one, a scaler's factor).
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError, RecorderError
from lsmooth.loop.attempt import Attempts
from lsmooth.loop.backward import factor_of, refused
from lsmooth.loop.losses import Choice, Pick, bent_by, loss_in
from lsmooth.loop.recalls import Context, OutputsOfCalls, Recall
from lsmooth.loop.step import BackwardPass
from lsmooth.replay.arrivals import count_arrivals
from lsmooth.replay.contexts import ContextState
from lsmooth.replay.microbatch import Closure, Microbatch, dtypes_of, reachable_leaves, replaying
from lsmooth.replay.state import Surroundings


@dataclass(frozen=True)
class _Call:
    """A call of a watched function that has returned a loss."""

    closure: Closure
    surroundings: Surroundings
    loss: Tensor
    leaves: list[Tensor]
    dtypes: set[torch.dtype]


@dataclass
class _Backward:
    """A backward pass in progress: the watched losses that it started from, and the arrivals counted so far."""

    calls: list[tuple[_Call, Tensor, ContextState]] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    arrivals: dict[Tensor, int] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)

    def end(self) -> None:
        for hook in self.hooks:
            hook.remove()


_BENT = (
    "The loop makes {} of a loss that is watched, so that the loss which it minimises cannot be evaluated again; "
    "watch, in its place, a function of the same inputs that does that operation, too."
)


def _summed(call: _Call, gradient: Tensor) -> tuple[Closure, Tensor, Tensor]:
    """Return a call's closure, its loss and the gradient that arrived there; of several losses, those of their sum."""
    if call.loss.numel() == 1:
        return call.closure, call.loss, gradient

    def closure() -> Tensor:
        return (call.closure() * gradient).sum()  # type: ignore[no-any-return]

    return closure, (call.loss * gradient).sum(), torch.ones((), dtype=gradient.dtype, device=gradient.device)


class _Hook:
    """A hook of one module object; copies and pickles of the module get a hook that does nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        # A function that takes any arguments, returns None, and can be unpickled without lsmooth.
        return getattr, (contextlib.nullcontext(), "__exit__")


class _Proxy:
    """Stands for a callable object whose calls are watched; all other attributes are the object's own."""

    def __init__(self, call: Callable[..., Any], watched: Callable[..., Any]) -> None:
        self._call = call
        self._watched = watched

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_call", "_watched"):
            raise AttributeError(name)
        return getattr(self._watched, name)


class Watch:
    """The functions that a recorder watches.

    Args:
        attempts: Collects the backward passes from their losses.
        context: Returns a function that makes the context in which a replay evaluates a loss as it would be now.

    Attributes:
        on: Whether anything is watched.
        deaf: True while losses are to be ignored, since `Recorder.backward` computes and collects them itself.
    """

    def __init__(self, attempts: Attempts, context: Callable[[], Callable[[], AbstractContextManager[None]]]) -> None:
        self._attempts = attempts
        self._context = context
        self._scaler: torch.amp.GradScaler | None = None
        self._backward: _Backward | None = None
        self._hooks: list[Any] = []
        # Models whose outputs go into a loss, and the criteria that compute it.
        self._models: list[nn.Module] = []
        self._criteria: list[Callable[..., Any]] = []
        self._outputs = OutputsOfCalls()
        # What watched losses are known by in autograd's graph.
        self._key = object()
        self._closed = False
        self.on = False
        self.deaf = False

    def wrap(
        self,
        function: Any,
        criterion: Any,
        scaler: torch.amp.GradScaler | None,
        during_replay: Context,
        loss: Choice | None,
    ) -> Any:
        """Return the watched `function`; or, with `criterion`, the watched criterion whose inputs `function` computes.

        The arguments are those of `Recorder.watch`.

        Raises:
            InvalidArgumentError: `function` or `criterion` cannot be watched.
        """
        if criterion is not None:
            return self._criterion(function, criterion, scaler, during_replay, loss)
        if not callable(function):
            raise InvalidArgumentError(
                f"recorder.watch takes the function that computes the loss, not {type(function).__name__}; or a model "
                "and a criterion."
            )
        return self._wrap(function, scaler, during_replay, functools.partial(loss_in, choose=loss))

    def _wrap(self, function: Any, scaler: torch.amp.GradScaler | None, during_replay: Context, pick: Pick) -> Any:
        self.on = True
        self._scaler = scaler

        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self._listens():
                return function(*args, **kwargs)
            begun = self._begin_call(function, args, kwargs, during_replay)
            returned = function(*args, **kwargs)
            self._end_call(begun, returned, pick)
            return returned

        # A loss object of a library may have further attributes and methods, which a function would hide.
        plain = isinstance(function, (types.FunctionType, types.MethodType, functools.partial, type))
        is_object = not plain and hasattr(function, "__dict__") and not isinstance(function, nn.Module)
        return _Proxy(watched, function) if is_object else functools.wraps(function)(watched)

    def _criterion(
        self,
        models: Any,
        criterion: Any,
        scaler: torch.amp.GradScaler | None,
        during_replay: Context,
        loss: Choice | None,
    ) -> Any:
        """Return the watched criterion whose inputs the models compute; a module is hooked in place."""
        models = list(models) if isinstance(models, (list, tuple)) else [models]
        if not callable(criterion) or not models or not all(isinstance(model, nn.Module) for model in models):
            raise InvalidArgumentError(
                "recorder.watch(model, criterion) takes the module that the loop calls, or several in a list, and the "
                "function of its output that returns the loss."
            )
        for model in models:
            self._hook_outputs(model)
        self._criteria.append(criterion)
        # A criterion may leave it to the loop to take the mean of its losses.
        pick = functools.partial(loss_in, choose=loss, entries=True)
        if isinstance(criterion, nn.Module):
            self._hook_calls(criterion, scaler, during_replay, pick)
            return criterion
        return self._wrap(criterion, scaler, during_replay, pick)

    def hook_forward(
        self,
        module: nn.Module,
        scaler: torch.amp.GradScaler | None,
        during_replay: Context = contextlib.nullcontext,
        loss: Choice | None = None,
    ) -> None:
        """Watch every call of `module`."""
        self._hook_calls(module, scaler, during_replay, functools.partial(loss_in, choose=loss))

    def _hook_calls(
        self, module: nn.Module, scaler: torch.amp.GradScaler | None, during_replay: Context, pick: Pick
    ) -> None:
        self.on = True
        self._scaler = scaler
        self._hook(module, during_replay, lambda begun, returned: self._end_call(begun, returned, pick))

    def _hook_outputs(self, model: nn.Module) -> None:
        """Note the tensors that every call of `model` returns."""
        if model not in self._models:
            self._models.append(model)
            self._hook(model, contextlib.nullcontext, self._outputs.note)

    def _hook(self, module: nn.Module, during_replay: Context, after_call: Callable[[Any, Any], None]) -> None:
        calls: list[Recall | None] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.clear()
            if self._listens():
                calls.append(self._begin_call(module, args, kwargs, during_replay))

        def after(_: nn.Module, args: tuple[Any, ...], returned: Any) -> None:
            if calls:
                after_call(calls.pop(), returned)

        # These hooks see the arguments first and the output last, since a replay runs the other hooks again.
        self._hooks.append(module.register_forward_pre_hook(_Hook(before), prepend=True, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(_Hook(after)))

    def close(self) -> None:
        """Stop watching; wrapped functions stay usable, and behave as if they were not wrapped."""
        self._closed = True
        self._abandon()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._models.clear()
        self._criteria.clear()

    # --- a call ---

    def _listens(self) -> bool:
        heard = not self._closed and self._attempts.collects and not self.deaf
        # Inside a backward pass, a call only recomputes checkpointed activations.
        return heard and torch.is_grad_enabled() and not replaying() and torch._C._current_graph_task_id() == -1

    def _begin_call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], during_replay: Context
    ) -> Recall | None:
        # A backward pass that raised never called `_backward_ended`.
        self._abandon()
        self._attempts.joint.finish_if_over()
        if not self._attempts.backward_begins():
            return None
        subject = self._attempts.subject
        around = (subject.model, *self._models, *self._criteria)
        with self._attempts.contained():
            surroundings = Surroundings.capture(
                function,
                args,
                kwargs,
                *around,
                device_type=subject.device.type,
                trained=subject.trained(),
                context=self._context(),
            )
            return self._outputs.recall(function, args, kwargs, during_replay, surroundings, subject.parameters)
        return None

    def _end_call(self, begun: Recall | None, returned: Any, pick: Pick) -> None:
        loss = None
        # At steps that are not measured, an ambiguous loss is no error.
        with self._attempts.contained() if begun is not None else contextlib.suppress(RecorderError):
            loss = pick(returned)
        if loss is None or loss.grad_fn is None:
            if returned is None:
                # In many frameworks, a training step returns None to skip its batch.
                self._attempts.pass_over()
            return
        call = None
        if begun is not None:
            begun.ended()
            closure, surroundings = begun.closure(pick), begun.first.surroundings
            metadata: Any = loss.grad_fn.metadata
            metadata[self._key] = True
            call = _Call(closure, surroundings, loss.detach().clone(), reachable_leaves(loss), dtypes_of(loss))
        loss.register_hook(lambda gradient: self._backward_from(call, gradient))

    # --- a backward pass ---

    @torch.no_grad()
    def _backward_from(self, call: _Call | None, gradient: Tensor) -> None:
        """Note that a backward pass has arrived at a watched loss with this gradient."""
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
                count_arrivals(attempts.subject.parameters, backward.arrivals, backward.hooks)
            else:
                # The loop may have skipped a step by zeroing gradients between forward and backward. What was captured
                # for the skipped step does not serve the next one, which is left unmeasured.
                attempts.pass_over()
        if call is not None and attempts.begun:
            node: Any = torch._C._current_autograd_node()
            operation = bent_by(node, lambda other: self._key in other.metadata)
            if operation is not None:
                call = replace(call, closure=functools.partial(refused, _BENT.format(operation)))
            contexts = ContextState.capture(attempts.subject.device.type)
            backward.calls.append((call, gradient.detach().clone(), contexts))

    def _wait_for_others(self, backward: _Backward) -> None:
        # DistributedDataParallel queues its own callback after this one. Queueing again lets that callback run first.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self._backward_ended(backward))

    @torch.no_grad()
    def _backward_ended(self, backward: _Backward) -> None:
        attempts = self._attempts
        backward.end()
        if self._backward is not backward:
            return
        self._backward = None
        # `torch.autograd.grad` comes here too, but accumulates no gradient, and is no backward pass of a step.
        if backward.calls and backward.arrivals and attempts.begun:
            with attempts.contained():
                attempts.check_unchanged(backward.versions)
                attempts.collect(self._collected(backward))
        attempts.backward_ended()

    def _collected(self, backward: _Backward) -> BackwardPass:
        """Return the record of a backward pass that is over."""
        factor = factor_of(self._scaler, self._attempts.subject.device)
        microbatches: list[Microbatch] = []
        losses: list[Tensor] = []
        for call, arrived, contexts in backward.calls:
            closure, loss, seed = _summed(call, arrived)
            weight = seed if factor is None else seed / factor.to(seed.device)
            microbatches.append(
                Microbatch(
                    closure,
                    call.surroundings,
                    scale=factor,
                    weight=weight,
                    seed=seed,
                    backward_contexts=contexts,
                    dtypes=call.dtypes,
                )
            )
            losses.append(loss * weight)
        leaves = tuple(leaf for call, _, _ in backward.calls for leaf in call.leaves)
        return BackwardPass(tuple(microbatches), tuple(losses), backward.arrivals, leaves)

    def _abandon(self) -> None:
        if self._backward is not None:
            self._backward.end()
            self._backward = None
            self._attempts.forget()
