"""CUDA graphs: whose memory is theirs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def owned_by_graphs(tensors: Iterable[Tensor]) -> bool:
    """Say whether a CUDA graph owns the memory of one of these tensors, which its next run then overwrites.

    Gradients are such where a model was compiled with mode="reduce-overhead" or went through
    `torch.cuda.make_graphed_callables`. Asks the allocator for its books, which takes longer the more blocks there are.
    """
    pointers = [tensor.data_ptr() for tensor in tensors if tensor.is_cuda]
    if not pointers or torch.cuda.get_allocator_backend() != "native":
        return False
    # Graphs allocate in pools of their own; (0, 0) is everyone else's.
    pools = [segment for segment in torch.cuda.memory_snapshot() if segment.get("segment_pool_id", (0, 0)) != (0, 0)]
    return any(
        pool["address"] <= pointer < pool["address"] + pool["total_size"] for pool in pools for pointer in pointers
    )
