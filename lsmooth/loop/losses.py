"""Find the loss in what a call returns, and what a loop makes of it before it calls backward."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lsmooth.errors import RecorderError
from lsmooth.replay.redone import tensors_in

Choice = Callable[[Any], Any]
# Returns the loss in what a call returned; None for none.
Pick = Callable[[Any], Tensor | None]


def loss_in(returned: Any, choose: Choice | None = None, *, entries: bool = False) -> Tensor | None:
    """Return the loss in what a call returned, a tensor of one element that requires a gradient; None if there is none.

    The loss is what `choose` returns of it, if given. Otherwise it is, in this order: the returned tensor itself; its
    attribute `loss`, item "loss" or first item; the only scalar tensor in it that requires a gradient.

    Args:
        returned: What the call returned.
        choose: Picks the loss.
        entries: Whether a tensor of several losses, which the loop will reduce, is one too.

    Raises:
        RecorderError: There are several such scalars, and none of them is called the loss; or `choose` computes one.
    """
    if choose is not None:
        return _chosen(returned, choose)
    if entries and isinstance(returned, Tensor) and returned.requires_grad and returned.numel() > 1:
        return returned
    named = returned
    if isinstance(returned, Mapping):
        named = returned.get("loss")
    elif isinstance(getattr(returned, "loss", None), Tensor):
        named = returned.loss
    elif isinstance(returned, Sequence) and returned:
        named = returned[0]
    loss = _usable(named)
    if loss is not None or isinstance(returned, Tensor):
        return loss
    # Only tensors without dimensions: a model's output for one example may have one element, and is no loss.
    scalars = [tensor for tensor in tensors_in(returned) if tensor.dim() == 0 and _usable(tensor) is not None]
    found = list({id(tensor): tensor for tensor in scalars}.values())
    if len(found) > 1:
        raise RecorderError(
            f"The returned {type(returned).__name__} holds {len(found)} scalars with a gradient, and it is not clear "
            "which is the loss; say it with loss=lambda returned: …, or watch a function that computes the loss from "
            "them."
        )
    return found[0] if found else None


def _chosen(returned: Any, choose: Choice) -> Tensor | None:
    before = torch._C._autograd._get_sequence_nr()
    loss = _usable(choose(returned))
    if loss is not None and loss.grad_fn is not None and loss.grad_fn._sequence_nr() >= before:
        raise RecorderError(
            "loss= has computed a new tensor, which the loop's backward pass does not come from; let it pick one of "
            "those that are returned, or watch a function that computes the loss: recorder.watch(model, function)."
        )
    return loss


# --- what a loop makes of it ---

# Operations of autograd's graph whose derivative depends on what they are given.
_BENT = (
    *("Sqrt", "Rsqrt", "Pow", "Exp", "Expm1", "Log", "Log2", "Log10", "Log1P", "Logsumexp", "Abs", "Reciprocal"),
    *("Clamp", "ClampMin", "ClampMax", "Max", "Min", "Maximum", "Minimum", "Amax", "Amin", "Topk", "Sort", "Relu"),
    *("Sigmoid", "LogSigmoid", "Tanh", "Softplus", "Softmax", "LogSoftmax", "LinalgVectorNorm", "Norm", "Var", "Std"),
)
_PRODUCTS = ("Mul", "Div")
# So many operations are looked at.
_MOST_NODES = 1024


def bent_by(loss_node: Any, ends: Callable[[Any], bool]) -> str | None:
    """Return the operation by which the backward pass that is going on makes a loss's weight depend on the loss.

    A mean, a sum, a constant factor give each loss a weight, which stays what it is along a step. A root does not.

    Args:
        loss_node: The node of autograd's graph that has computed the loss.
        ends: Says whether a node is that of a loss, behind which nothing is looked for.
    """
    users: dict[Any, list[Any]] = {}
    waiting = deque(root.grad_fn for root in _roots_of_backward() if root.grad_fn is not None)
    while waiting and len(users) < _MOST_NODES:
        node = waiting.popleft()
        for parent, _ in () if ends(node) else node.next_functions:
            if parent is not None:
                if parent not in users:
                    waiting.append(parent)
                users.setdefault(parent, []).append(node)
    found: dict[Any, None] = {}
    waiting = deque(users.get(loss_node, ()))
    while waiting:
        node = waiting.popleft()
        if node in found:
            continue
        found[node] = None
        kind = node.name().partition("Backward")[0]
        if kind in _BENT or (kind in _PRODUCTS and all(parent is not None for parent, _ in node.next_functions)):
            return str(node.name())
        waiting.extend(users.get(node, ()))
    return None


def _roots_of_backward() -> Sequence[Tensor]:
    """Return the tensors that the backward pass which calls this comes from; none where that is not found out."""
    # On a GPU, hooks are called in a thread of their own.
    frames = itertools.chain(_callers(sys._getframe()), *map(_callers, sys._current_frames().values()))
    for frame in frames:
        if frame.f_code is torch.autograd.backward.__code__:
            tensors = frame.f_locals.get("tensors", ())
            return [tensors] if isinstance(tensors, Tensor) else list(tensors)
    return []


def _callers(frame: Any) -> Iterator[Any]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _usable(loss: Any) -> Tensor | None:
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad else None
