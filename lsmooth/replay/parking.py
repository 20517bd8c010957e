"""Tensors that wait in the host's memory until they are needed on their device again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Elements that are brought to the device at a time: enough to keep it and the bus busy.
PIECE = 1 << 22


def parked_room(parameter: Tensor) -> Tensor:
    """Return memory of the host for a tensor's values, which an NVIDIA or AMD GPU copies to and from by itself.

    A tensor on the CPU gets memory like its own.
    """
    return torch.empty_like(parameter, device="cpu", pin_memory=parameter.device.type == "cuda", requires_grad=False)


def brought(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor as it is on a device: itself where it lies there, else a copy that nothing waits for.

    A parked tensor may be read in no other way: what it holds may still be on its way to the host.
    """
    return tensor if tensor.device == device else tensor.to(device, non_blocking=True)


def in_pieces(
    tensors: Sequence[Tensor], others: Sequence[Tensor], size: int = PIECE
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield views of tensors with the same parts of others, brought to the tensors' devices.

    Those that lie there come all at once; of each parked one, some rows at a time, about `size` elements.
    """
    at_hand = [(a, b) for a, b in zip(tensors, others, strict=True) if a.device == b.device]
    if at_hand:
        yield [a for a, _ in at_hand], [b for _, b in at_hand]
    for a, b in zip(tensors, others, strict=True):
        if a.device == b.device:
            continue
        # Along the first dimension, views are to be had whatever the strides are.
        rows = max(1, size * len(a) // max(1, a.numel())) if a.dim() else 1
        for some, part in zip(*((a.split(rows), b.split(rows)) if a.dim() else ([a], [b])), strict=True):
            yield [some], [brought(part, some.device)]
