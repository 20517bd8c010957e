"""Calls of watched functions that can be made again, with old arguments and fresh outputs of earlier calls."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lsmooth.errors import RecorderError
from lsmooth.loop.losses import Pick
from lsmooth.replay.microbatch import Closure, may_reach
from lsmooth.replay.objects import ObjectState
from lsmooth.replay.redone import CannotBeRedone, Output, Recipe, calls_of, made_of, make, rebuilt, tensors_in
from lsmooth.replay.state import Surroundings

Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class _Made:
    """Stands in a call's arguments for a tensor that is computed again at each replay."""

    recipe: Recipe


class Recall:
    """A call of a watched function, with everything needed to make it again.

    Args:
        function: The function that was called.
        arguments: Its positional and keyword arguments in copied containers; `_Made` for tensors computed again.
        during_replay: Makes a context in which the function is called again.
        surroundings: The state of models, generators and contexts in which the call was made.
        remakes: Whether the arguments hold any `_Made`.
        before: The earlier calls whose outputs the `_Made` are computed from.
        refusal: Why the call cannot be made again, in one sentence; None if it can.

    Attributes:
        surroundings: As above; after `ended`, without what the call left unchanged.
    """

    _numbers = itertools.count()

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Any,
        during_replay: Context,
        surroundings: Surroundings,
        *,
        remakes: bool,
        before: Iterable[Recall],
        refusal: str | None,
    ) -> None:
        self.surroundings = surroundings
        self._function = function
        self._arguments = arguments
        self._during_replay = during_replay
        self._number = next(self._numbers)
        self._remakes = remakes
        self._before = list(before)
        self._refusal = refusal
        self._began_at = _versions(surroundings)
        self._ended_at: dict[Tensor, int] = {}

    def ended(self) -> None:
        """Note that the call has returned."""
        self._ended_at = _versions(self.surroundings)
        self.surroundings = self.surroundings.without_unchanged()

    @property
    def first(self) -> Recall:
        """The first call of the chain that a replay makes; the whole replay starts from its surroundings."""
        return self._chain()[0]

    def closure(self, pick: Pick) -> Closure:
        """Return a closure that makes the calls before this one and this call again, and returns this call's loss."""
        chain = self._chain()
        changes = [None, *(_changed(before, call) for before, call in itertools.pairwise(chain))]

        def closure() -> Tensor:
            outputs: dict[Recall, Any] = {}
            if len(chain) == 1:
                return _loss_of_replay(self._again(outputs), pick)
            for call, change in zip(chain, changes, strict=True):
                if change is not None:
                    change.restore()
                with call.surroundings.contexts.restored():
                    outputs[call] = call._again(outputs)
            return _loss_of_replay(outputs[self], pick)

        return closure

    def _chain(self) -> list[Recall]:
        """Return this call and all calls that it depends on, in the order in which they were made."""
        found = {self: None}
        for call in self._before:
            found.update(dict.fromkeys(call._chain()))
        return sorted(found, key=lambda call: call._number)

    def _again(self, outputs: Mapping[Recall, Any]) -> Any:
        """Make the call again, from the outputs of the calls before it."""
        if self._refusal is not None:
            raise RecorderError(self._refusal)
        args, kwargs = _containers_copied(self._arguments)
        if self._remakes:
            made: dict[Recipe, Tensor] = {}
            returned = {call: tensors_in(output) for call, output in outputs.items()}

            def fresh(value: _Made) -> Tensor:
                # The recipe holds autocast's casts as operations of their own.
                with torch.autocast(self.surroundings.contexts.autocast.devices[-1][0], enabled=False):
                    return make(value.recipe, returned.__getitem__, made)

            args, kwargs = rebuilt((args, kwargs), _Made, fresh)
        with self._during_replay():
            return self._function(*args, **kwargs)


def _versions(surroundings: Surroundings) -> dict[Tensor, int]:
    return {buffer: buffer._version for buffer, _, _ in surroundings.modules.contents}


def _changed(before: Recall, call: Recall) -> Surroundings:
    """Return a call's surroundings, restricted to the buffers written to since the call before it ended.

    The other buffers must not be restored: the graph of the call before may have saved them, and autograd would refuse
    them after a write.
    """
    modules = call.surroundings.modules
    then, now = before._ended_at, call._began_at
    contents = tuple(entry for entry in modules.contents if then.get(entry[0], now[entry[0]]) != now[entry[0]])
    # Changes of objects between the two calls are made by the call before, in the replay too.
    return replace(call.surroundings, modules=replace(modules, contents=contents), objects=ObjectState(()))


class OutputsOfCalls:
    """The tensors that watched models have returned, by their place in autograd's graph.

    The notes are kept in the metadata of the graph's nodes, so that they are freed together with the graph.
    """

    def __init__(self) -> None:
        self._key = object()

    def note(self, call: Recall | None, returned: Any) -> None:
        """Note what a call has returned; `call` is None if it is not to be made again."""
        if call is not None:
            call.ended()
        for position, tensor in enumerate(tensors_in(returned)):
            if tensor.grad_fn is not None:
                metadata: Any = tensor.grad_fn.metadata
                notes = metadata.setdefault(self._key, {})
                # The first call that returned a tensor is the one that computed it.
                notes.setdefault(tensor.output_nr, Output(call, position))

    def _source(self, node: Any, position: int) -> Output | None:
        return node.metadata.get(self._key, {}).get(position)  # type: ignore[no-any-return]

    def recall(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        during_replay: Context,
        surroundings: Surroundings,
        parameters: Sequence[Tensor],
    ) -> Recall | None:
        """Return a call that is about to be made; None if a call that it depends on is not to be made again.

        Args:
            function: The function that is called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            during_replay: Makes a context in which the function is called again.
            surroundings: The state in which the call is made.
            parameters: The parameters that replays move.
        """
        recipes: list[Recipe] = []
        refusals: list[str] = []

        def kept(tensor: Tensor) -> Any:
            if tensor.grad_fn is None:
                return tensor
            try:
                recipe = made_of(tensor, self._source)
            except CannotBeRedone as error:
                if not may_reach(tensor, set(parameters)):
                    # The output of a network that replays do not move stays as it is.
                    return tensor.detach().requires_grad_()
                refusals.append(_from_outside(function, args, kwargs, tensor, str(error)))
                return None
            recipes.append(recipe)
            return _Made(recipe)

        arguments = rebuilt(_containers_copied((args, dict(kwargs))), Tensor, kept)
        before = dict.fromkeys(call for recipe in recipes for call in calls_of(recipe))
        if None in before:
            return None
        return Recall(
            function,
            arguments,
            during_replay,
            surroundings,
            remakes=bool(recipes),
            before=before,
            refusal=refusals[0] if refusals else None,
        )


def _from_outside(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor: Tensor, operation: str
) -> str:
    """Return the error message for an input whose graph cannot be computed again."""
    called = getattr(function, "__name__", type(function).__name__)
    return (
        f"The input {_name_of(function, args, kwargs, tensor)} of {called} has a graph from outside the watched calls "
        f"({operation}), so that the loss cannot be evaluated again; watch the model that computes it too, "
        "recorder.watch(model, criterion), and let one of the two do that operation."
    )


def _name_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor: Tensor) -> str:
    """Return the name of the argument that a tensor is passed for."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        bound: Mapping[str, Any] = inspect.signature(called).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {**{str(i + 1): value for i, value in enumerate(args)}, **kwargs}
    return next((name for name, value in bound.items() if any(t is tensor for t in tensors_in(value))), "1")


def _loss_of_replay(returned: Any, pick: Pick) -> Tensor:
    if returned is None:
        # Some training steps return None where the loss is not finite: this point has no gradient.
        return torch.tensor(math.nan, requires_grad=True)
    loss = pick(returned)
    if loss is None:
        raise RecorderError("The watched function returned a loss the first time, and none when called again.")
    return loss


def _containers_copied(value: Any) -> Any:
    """Return a value with its dicts, lists and tuples copied, since the callee may change them; items are the same."""
    try:
        return pytree.tree_map(lambda leaf: copy.copy(leaf) if isinstance(leaf, MutableMapping) else leaf, value)
    except RecursionError:
        # Nested deeper than Python's recursion limit: changes that the callee makes in there are not undone.
        return value
