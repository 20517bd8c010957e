"""Which of the things that a call returns is the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lsmooth.errors import RecorderError
from lsmooth.replay.redone import tensors_in

Choice = Callable[[Any], Any]


def loss_in(returned: Any, choose: Choice | None = None) -> Tensor | None:
    """Return the loss in what a call returned: a scalar tensor that has a gradient, or None.

    It is what `choose` takes of it; else the thing itself, its `.loss`, item "loss" or first item; else the only scalar
    tensor in it that has a gradient.

    Raises:
        RecorderError: There are several such scalars, none of which is called the loss.
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
    # A model's output for one example may have one entry, and is no loss.
    scalars = [tensor for tensor in tensors_in(returned) if tensor.dim() == 0 and _usable(tensor) is not None]
    found = list({id(tensor): tensor for tensor in scalars}.values())
    if len(found) > 1:
        raise RecorderError(
            f"Which of the {len(found)} scalars with a gradient in the returned {type(returned).__name__} is the loss "
            "is not clear; say it with loss=lambda returned: …, or watch a function that computes the loss from them."
        )
    return found[0] if found else None


def _usable(loss: Any) -> Tensor | None:
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad else None
