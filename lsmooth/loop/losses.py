"""Find the loss in what a call returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lsmooth.errors import RecorderError
from lsmooth.replay.redone import tensors_in

Choice = Callable[[Any], Any]


def loss_in(returned: Any, choose: Choice | None = None) -> Tensor | None:
    """Return the loss in what a call returned, a tensor of one element that requires a gradient; None if there is none.

    The loss is what `choose` returns of it, if given. Otherwise it is, in this order: the returned tensor itself; its
    attribute `loss`, item "loss" or first item; the only scalar tensor in it that requires a gradient.

    Raises:
        RecorderError: There are several such scalars, and none of them is called the loss.
    """
    if choose is not None:
        return _usable(choose(returned))
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


def _usable(loss: Any) -> Tensor | None:
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad else None
