"""One closure of a step, and how it is evaluated again as it was evaluated the first time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lsmooth.errors import RecorderError
from lsmooth.parallel.shards import forget_gathered
from lsmooth.replay.contexts import ContextState
from lsmooth.replay.state import Surroundings

# What a step's loss is evaluated by: it takes nothing, and returns the loss.
Closure = Callable[[], Any]
Context = Callable[[], contextlib.AbstractContextManager[Any]]

# How many evaluations are being made again at this moment. One number for the process: backward passes on a GPU call
# hooks on threads of their own.
_replays_in_process = 0


def replaying() -> bool:
    """Say whether a loss is being evaluated again by a recorder, rather than by the training loop.

    For code inside of a loss that does more than compute it (count examples, log): leave that out while this is true.
    """
    return _replays_in_process > 0


@contextlib.contextmanager
def _replay() -> Iterator[None]:
    global _replays_in_process
    _replays_in_process += 1
    try:
        yield
    finally:
        _replays_in_process -= 1


@dataclass(frozen=True)
class Microbatch:
    """One closure, and all that is needed to evaluate it again as it was evaluated the first time.

    Attributes:
        closure: Returns the loss.
        surroundings: What it found around it the first time.
        scale: What the loss was multiplied by before backward, a scalar tensor; None without a scaler.
        weight: What the loop itself made of the loss: its share in the step's, a scalar tensor; None for all of it.
        seed: The gradient that arrived at the loss where the loop called backward; None where the recorder did.
        backward_contexts: Contexts around that backward.
        dtypes: The floating-point dtypes that its loss was computed in, see `dtypes_of`; empty until it has been.
    """

    closure: Closure
    surroundings: Surroundings
    scale: Tensor | None
    weight: Tensor | None = None
    seed: Tensor | None = None
    backward_contexts: ContextState | None = None
    dtypes: set[torch.dtype] = field(default_factory=set, compare=False)

    def all_dtypes(self) -> frozenset[torch.dtype]:
        """Return the floating-point dtypes that the loss is computed in, as far as they are seen."""
        return self.surroundings.contexts.autocast.dtypes.union(self.dtypes)

    def without_autocast(self) -> Microbatch:
        """Return the same closure, evaluated without autocast."""
        backward = self.backward_contexts
        return replace(
            self,
            surroundings=replace(self.surroundings, contexts=self.surroundings.contexts.without_autocast()),
            backward_contexts=None if backward is None else backward.without_autocast(),
            dtypes=set(),
        )

    def evaluate(self, users: Context = contextlib.nullcontext) -> Tensor:
        """Run forward and backward once more, gradients going to `.grad`; return the detached, unscaled loss.

        Args:
            users: Makes a context for the user's code alone: Ctrl-C strikes there, and nowhere else.

        Raises:
            InputChangedError: What the loss was computed from has changed since.
        """
        self.surroundings.restore()
        return self.run(users)

    def run(self, users: Context = contextlib.nullcontext) -> Tensor:
        """Do what `evaluate` does, once the surroundings are restored."""
        around = self.surroundings
        with _replay(), around.context():
            with around.contexts.restored(), users():
                loss = loss_of(around.contexts.call(self.closure))
                if not self.dtypes:
                    self.dtypes.update(dtypes_of(loss))
                if self.seed is None:
                    (loss if self.scale is None else loss * self.scale).backward()
            if self.seed is not None:
                with (self.backward_contexts or around.contexts).restored(), users():
                    loss.backward(self.seed.reshape(loss.shape))
        return self._weighted(loss)

    def evaluate_loss(self, users: Context = contextlib.nullcontext) -> Tensor:
        """Run forward once more, without a graph; return the unscaled loss.

        Raises:
            InputChangedError: What the loss was computed from has changed since.
        """
        around = self.surroundings
        around.restore()
        try:
            with _replay(), around.context(), around.contexts.restored(), torch.no_grad(), users():
                return self._weighted(scalar_of(around.contexts.call(self.closure)))
        finally:
            # The next point moves the shards, which no backward pass gathers anew.
            forget_gathered(around.modules.models)

    def _weighted(self, loss: Tensor) -> Tensor:
        return loss.detach() if self.weight is None else loss.detach() * self.weight


def loss_of(returned: Any) -> Tensor:
    """Return the loss that a closure's return value carries: itself, or its first item, or its item "loss".

    Raises:
        RecorderError: There is no scalar tensor that a backward pass can start from.
    """
    loss = scalar_of(returned)
    if not loss.requires_grad:
        raise RecorderError(
            "The closure given to recorder.backward returned a loss that no parameter has a gradient of; "
            "run the forward pass inside the closure, outside torch.no_grad(), and return the loss undetached."
        )
    return loss


def scalar_of(returned: Any) -> Tensor:
    """Return what `loss_of` does, whether or not a backward pass can start from it.

    Raises:
        RecorderError: There is no scalar tensor.
    """
    loss = returned
    if isinstance(returned, Mapping) and "loss" in returned:
        loss = returned["loss"]
    elif isinstance(returned, Sequence) and returned:
        loss = returned[0]
    if not isinstance(loss, Tensor):
        raise RecorderError(
            f"The closure given to recorder.backward returned {type(loss).__name__}; "
            "return the loss, or a tuple whose first item is the loss."
        )
    if loss.numel() != 1:
        raise RecorderError(
            f"The closure given to recorder.backward returned a loss of shape {tuple(loss.shape)}; "
            "return a scalar, such as its mean."
        )
    return loss


def detached(returned: Any, copy: bool = False) -> Any:
    """Return a closure's return value with every tensor in it detached from its graph; in its own memory, if asked."""

    def of(tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if copy else tensor.detach()

    try:
        return of(returned) if isinstance(returned, Tensor) else pytree.tree_map_only(Tensor, of, returned)
    except RecursionError:
        # Nested deeper than Python calls itself: it stays as the closure has made it.
        return returned


# So many nodes of a graph are looked at. PyTorch frees those that Python has seen by recursion, one within the other:
# a graph of some 20,000 in a row would be the end of the process.
_MOST_NODES = 4096


def nodes_of(root: Tensor) -> dict[Any, None]:
    """Return nodes of the graph that a tensor was computed by, the nearest ones first; of some thousands, no more."""
    found = {} if root.grad_fn is None else {root.grad_fn: None}
    waiting = deque(found)
    while waiting:
        for parent, _ in waiting.popleft().next_functions:
            if len(found) == _MOST_NODES:
                return found
            if parent is not None and parent not in found:
                found[parent] = None
                waiting.append(parent)
    return found


def dtypes_of(root: Tensor) -> set[torch.dtype]:
    """Return the floating-point dtypes of tensors that a tensor was computed from; see `nodes_of`.

    What a compiled region computes in shows in what it returns alone.
    """
    outputs = (output for node in nodes_of(root) for output in getattr(node, "_input_metadata", ()))
    return {output.dtype for output in outputs if output.dtype.is_floating_point}


def reachable_leaves(root: Tensor) -> list[Tensor]:
    """Return leaf tensors that a backward pass from `root` accumulates gradients into, the nearest ones first.

    Of a graph with thousands of nodes, those far from the root are left out.
    """
    if root.grad_fn is None:
        return [root] if root.requires_grad else []
    variables = (getattr(node, "variable", None) for node in nodes_of(root))
    return [variable for variable in variables if isinstance(variable, Tensor)]


def may_reach(root: Tensor, tensors: Collection[Tensor]) -> bool:
    """Say whether a backward pass from `root` may accumulate into one of these; a large graph rules nothing out."""
    return len(nodes_of(root)) == _MOST_NODES or any(leaf in tensors for leaf in reachable_leaves(root))
