"""Tensors that are parked in the host's memory until their device needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Number of elements that are copied to the device at a time, enough to keep the device and the bus busy.
PIECE = 1 << 22


def parked_room(parameter: Tensor) -> Tensor:
    """Return memory of the host for a tensor's values, which an NVIDIA or AMD GPU copies to and from by itself.

    A tensor on the CPU gets memory like its own.
    """
    return torch.empty_like(parameter, device="cpu", pin_memory=parameter.device.type == "cuda", requires_grad=False)


def brought(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device: itself if it is there, and else a copy that is not waited for.

    A parked tensor must not be read in another way, since its values may still be on their way to the host.
    """
    return tensor if tensor.device == device else tensor.to(device, non_blocking=True)


def in_pieces(
    tensors: Sequence[Tensor], others: Sequence[Tensor], size: int = PIECE
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield views of tensors with the same parts of others, which are brought to the tensors' devices.

    Others that are there already come all at once; parked ones by rows, about `size` elements at a time.
    """
    at_hand = [(a, b) for a, b in zip(tensors, others, strict=True) if a.device == b.device]
    if at_hand:
        yield [a for a, _ in at_hand], [b for _, b in at_hand]
    for a, b in zip(tensors, others, strict=True):
        if a.device == b.device:
            continue
        # Splitting along the first dimension gives views whatever the strides are.
        rows = max(1, size * len(a) // max(1, a.numel())) if a.dim() else 1
        for some, part in zip(*((a.split(rows), b.split(rows)) if a.dim() else ([a], [b])), strict=True):
            yield [some], [brought(part, some.device)]
