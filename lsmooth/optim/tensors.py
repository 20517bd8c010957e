"""How the optimizers gather tensors for kernels that take many of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Elements of each tensor that are updated at a time on the CPU. So few stay in the cache from one operation to the
# next; so many keep the cost of calls small. Measured with benchmarks/optimizers.py.
_CPU_BLOCK = 1 << 18

# Devices on which torch's fused kernels were seen to do what the backends ask of them.
KERNEL_DEVICES = ("cpu", "cuda")


def kinds(tensors: Sequence[Tensor]) -> tuple[set[torch.device], set[torch.dtype]]:
    """Return the devices and the dtypes of tensors."""
    return {tensor.device for tensor in tensors}, {tensor.dtype for tensor in tensors}


def widest(device: torch.device) -> torch.dtype:
    """Return the widest real dtype of a device: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


def chosen(columns: Iterable[Sequence[Any]], positions: Sequence[int]) -> list[list[Any]]:
    """Return the entries of parallel lists at some positions."""
    return [[column[position] for position in positions] for column in columns]


def by_device_and_dtype(*lists: Sequence[Any]) -> Iterator[tuple[list[Any], ...]]:
    """Split parallel lists into runs that one multi-tensor kernel can take. The first list holds tensors."""
    if not lists[0]:
        return
    # Nearly always all tensors are alike. Seeing that takes less time than sorting.
    if all(len(found) == 1 for found in kinds(lists[0])):
        yield tuple(list(values) for values in lists)
        return
    found: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(lists[0]):
        found.setdefault((tensor.device, tensor.dtype), []).append(position)
    for positions in found.values():
        yield tuple(chosen(lists, positions))


def on_device(value: float | Tensor, device: torch.device) -> float | Tensor:
    """Return a number as it is, and a tensor of one element as one without dimensions on `device`."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(device, non_blocking=True)
    return value


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """Return whether all tensors are of torch's own class: a multi-tensor kernel skips what subclasses redefine."""
    return {type(tensor) for tensor in tensors} <= {Tensor, torch.nn.Parameter}


def lie_alike(*tensors: Tensor) -> bool:
    """Return whether tensors of one shape fill their memory without gaps, with their elements in the same order."""
    if all(map(Tensor.is_contiguous, tensors)):
        return True
    first = tensors[0]
    if any(other.stride() != first.stride() for other in tensors[1:]):
        return False
    expected = 1
    for stride, size in sorted(zip(first.stride(), first.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def blocks(lists: Sequence[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Split parallel lists of tensors into the blocks that are updated one after another.

    On the CPU a block holds flat pieces, of at most `_CPU_BLOCK` elements in each list. The next operation then finds
    in the cache what the last one left there. On a GPU one block holds everything, as it does for torch.compile, which
    makes one pass of all operations anyway.
    """
    if lists[0][0].device.type != "cpu" or torch.compiler.is_compiling():
        yield list(lists)
        return
    block: list[tuple[Tensor, ...]] = []
    held = 0
    for row in zip(*lists, strict=True):
        size = row[0].numel()
        pieces: Iterable[tuple[Tensor, ...]] = (row,)
        if size > _CPU_BLOCK and lie_alike(*row):
            pieces = zip(*(t.as_strided((size,), (1,)).split(_CPU_BLOCK) for t in row), strict=True)
        for piece in pieces:
            if block and held + piece[0].numel() > _CPU_BLOCK:
                yield [list(tensors) for tensors in zip(*block, strict=True)]
                block, held = [], 0
            block.append(piece)
            held += piece[0].numel()
    yield [list(tensors) for tensors in zip(*block, strict=True)]
