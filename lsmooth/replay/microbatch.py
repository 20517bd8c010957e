"""One closure of a step, which can be evaluated again under the conditions of its first evaluation."""

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

# Takes nothing, and returns the loss of a step.
Closure = Callable[[], Any]
Context = Callable[[], contextlib.AbstractContextManager[Any]]

# Number of replays that are running now. It is a variable of the process, not of the thread, since backward passes on a
# GPU call hooks on other threads.
_replays_in_process = 0


def replaying() -> bool:
    """Say whether a recorder is evaluating a loss again, rather than the training loop for the first time.

    Code inside a loss that does more than compute it (count examples, log) can leave that out while this is true.
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
    """One closure, with all that is needed to evaluate it again under the conditions of its first evaluation.

    Attributes:
        closure: Returns the loss.
        surroundings: The state of generators, modules, objects and contexts at the first evaluation.
        scale: The scaler's factor on the loss, a scalar tensor; None without a scaler.
        weight: The loop's own factor on the loss, its share in the step's loss, a scalar tensor; None for 1.
        seed: The gradient that arrived at the loss, if the loop called backward; None if the recorder did.
        backward_contexts: Contexts around that backward pass.
        dtypes: The floating-point dtypes that the loss was computed in, see `dtypes_of`; empty before an evaluation.
    """

    closure: Closure
    surroundings: Surroundings
    scale: Tensor | None
    weight: Tensor | None = None
    seed: Tensor | None = None
    backward_contexts: ContextState | None = None
    dtypes: set[torch.dtype] = field(default_factory=set, compare=False)

    def all_dtypes(self) -> frozenset[torch.dtype]:
        """Return the floating-point dtypes seen in the computation of the loss."""
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
        """Run forward and backward again, with gradients going to `.grad`; return the detached, unscaled loss.

        Args:
            users: Makes a context around the user's code, the only place where Ctrl-C may strike.

        Raises:
            InputChangedError: An input of the loss has changed since the first evaluation.
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
        """Run forward again, without a graph; return the unscaled loss.

        Raises:
            InputChangedError: An input of the loss has changed since the first evaluation.
        """
        around = self.surroundings
        around.restore()
        try:
            with _replay(), around.context(), around.contexts.restored(), torch.no_grad(), users():
                return self._weighted(scalar_of(around.contexts.call(self.closure)))
        finally:
            # Without a backward pass, FSDP keeps the gathered parameters, and would use them at the next point.
            forget_gathered(around.modules.models)

    def _weighted(self, loss: Tensor) -> Tensor:
        return loss.detach() if self.weight is None else loss.detach() * self.weight


def loss_of(returned: Any) -> Tensor:
    """Return the loss in a closure's return value: its item "loss", its first item, or the value itself.

    Raises:
        RecorderError: The loss is no scalar tensor that a backward pass can start from.
    """
    loss = scalar_of(returned)
    if not loss.requires_grad:
        raise RecorderError(
            "The closure given to recorder.backward returned a loss that depends on no parameter; "
            "run the forward pass inside the closure, outside torch.no_grad(), and return the loss undetached."
        )
    return loss


def scalar_of(returned: Any) -> Tensor:
    """Return the same as `loss_of`, also where no backward pass can start from it.

    Raises:
        RecorderError: The loss is no scalar tensor.
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
    """Return a closure's return value with every tensor in it detached, and copied if `copy` is true."""

    def of(tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if copy else tensor.detach()

    try:
        return of(returned) if isinstance(returned, Tensor) else pytree.tree_map_only(Tensor, of, returned)
    except RecursionError:
        # Nested deeper than Python's recursion limit: the value is returned as it is.
        return returned


# At most this many nodes of a graph are visited. PyTorch frees visited nodes recursively, and a chain of some 20,000
# nodes would overflow the stack of the process.
_MOST_NODES = 4096


def nodes_of(root: Tensor) -> dict[Any, None]:
    """Return the nodes of a tensor's graph, the nearest first, and at most `_MOST_NODES` of them."""
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
    """Return the floating-point dtypes of the tensors in a tensor's graph; see `nodes_of`.

    Of a compiled region, only the dtypes of its outputs are seen.
    """
    outputs = (output for node in nodes_of(root) for output in getattr(node, "_input_metadata", ()))
    return {output.dtype for output in outputs if output.dtype.is_floating_point}


def reachable_leaves(root: Tensor) -> list[Tensor]:
    """Return the leaf tensors that a backward pass from `root` accumulates gradients into, the nearest first.

    In a graph of more than `_MOST_NODES` nodes, the leaves far from the root are left out.
    """
    if root.grad_fn is None:
        return [root] if root.requires_grad else []
    variables = (getattr(node, "variable", None) for node in nodes_of(root))
    return [variable for variable in variables if isinstance(variable, Tensor)]


def may_reach(root: Tensor, tensors: Collection[Tensor]) -> bool:
    """Say whether a backward pass from `root` may accumulate into one of `tensors`; True if the graph is too large."""
    return len(nodes_of(root)) == _MOST_NODES or any(leaf in tensors for leaf in reachable_leaves(root))
