"""The part of sharded tensors (`fully_shard`, FSDP2) that a process holds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

# Modules of torch that define DTensor; the second one before PyTorch 2.5.
_DTENSOR_HOMES = ("torch.distributed.tensor", "torch.distributed._tensor")


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: its shard of a DTensor, or a plain tensor itself."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def is_sharded(tensor: Tensor) -> bool:
    """Say whether a tensor is a DTensor."""
    # Without an imported module there are no DTensors, and importing it would take time.
    for home in _DTENSOR_HOMES:
        kind = getattr(sys.modules.get(home), "DTensor", None)
        if kind is not None:
            return isinstance(tensor, kind)
    return False


def forget_gathered(models: Iterable[nn.Module]) -> None:
    """Free the full parameters that `fully_shard` gathered for a forward pass; the next pass gathers them again."""
    for model in models:
        for module in model.modules():
            reshard = getattr(module, "reshard", None)
            if callable(reshard) and any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
                reshard()


def held(parameter: Tensor, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Say which elements of a tensor this process holds.

    Args:
        parameter: The tensor, sharded or not.
        indices: Positions in the flattened whole tensor, (k,).

    Returns:
        Which of 0 … k-1 have their element here, and the positions of these in the flattened local tensor.
    """
    if not is_sharded(parameter):
        return np.arange(len(indices)), indices
    ranges = local_ranges(parameter)
    places = np.unravel_index(indices, tuple(parameter.shape))
    here = np.ones(len(indices), dtype=bool)
    for place, (start, length) in zip(places, ranges, strict=True):
        here &= (place >= start) & (place < start + length)
    if not here.any():
        return np.flatnonzero(here), np.zeros(0, dtype=np.int64)
    inside = tuple(place[here] - start for place, (start, _) in zip(places, ranges, strict=True))
    flat = np.ravel_multi_index(inside, tuple(length for _, length in ranges))
    return np.flatnonzero(here), np.asarray(flat, dtype=np.int64)


def local_ranges(parameter: Any) -> list[tuple[int, int]]:
    """Return start and length along each dimension of this rank's part of a sharded tensor."""
    ranges = [(0, int(length)) for length in parameter.shape]
    for dim, placement in enumerate(parameter.placements):
        if placement.is_shard():
            # As by torch.chunk: shards have equal lengths, except the last ones, which may be short or empty.
            start, length = ranges[placement.dim]
            piece = -(-length // parameter.device_mesh.size(dim))
            begin = min(parameter.device_mesh.get_local_rank(dim) * piece, length)
            ranges[placement.dim] = (start + begin, min(piece, length - begin))
    return ranges
