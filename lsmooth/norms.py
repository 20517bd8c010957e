"""Norms of many tensors at once, accumulated in float64 and left on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# On the CPU a tensor is taken in pieces that stay in cache between the difference and its norm; a GPU takes it whole.
_CPU_PIECE = 1 << 18
_LOW_PRECISION = (torch.float16, torch.bfloat16)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the widest real dtype that a device computes in: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


class TensorNorms:
    """‖a_i - b_i‖2 of n tensors that arrive one after another, in any order; b_i may be missing and counts as 0.

    Differences are formed in float32 or wider, squares are summed in float64: gradients of 1e-30 do not underflow,
    and bfloat16 ones do not lose the digits that they share. Nothing waits for the device.

    Args:
        sizes: Number of elements of each of the n tensors.
        device: Where the result is wanted.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self._device = device
        self.dtype = accumulation_dtype(device)
        self._zero = torch.zeros((), dtype=self.dtype, device=device)
        piece = _CPU_PIECE if device.type == "cpu" else max([1, *sizes])
        self._piece = piece
        pieces = [max(1, -(-size // piece)) for size in sizes]
        self._owners: Tensor | None = None
        if any(count > 1 for count in pieces):
            self._owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(pieces)).to(device)
        self._pieces = pieces
        self._parts: list[list[Tensor] | None] = []
        self.clear()

    def missing(self) -> list[int]:
        """Return the positions at which nothing has arrived yet."""
        return [position for position, parts in enumerate(self._parts) if parts is None]

    def clear(self) -> None:
        """Forget what has arrived."""
        self._parts = [None] * len(self._pieces)

    def add(self, positions: Sequence[int], tensors: Sequence[Tensor], minus: Sequence[Tensor | None]) -> None:
        """Take in the tensors at some positions, less their counterparts; temporary memory is one difference."""
        left: list[Tensor] = []
        right: list[Tensor | None] = []
        for tensor, other in zip(tensors, minus, strict=True):
            pieces, others = _flat_pair(tensor.detach(), other, self._piece)
            left += pieces
            right += others
        norms = _difference_norms(left, right, self.dtype)
        taken = 0
        for position in positions:
            count = self._pieces[position]
            parts = norms[taken : taken + count]
            if tensors[0].device != self._device:
                parts = [part.to(self._device, non_blocking=True) for part in parts]
            self._parts[position] = parts
            taken += count

    def result(self) -> Tensor:
        """Return the n norms, float64 (n,), 0 where nothing has arrived, and start anew."""
        parts: list[Tensor] = []
        for count, arrived in zip(self._pieces, self._parts, strict=True):
            parts += arrived if arrived is not None else [self._zero] * count
        norms = torch.stack(parts)
        self.clear()
        if self._owners is None:
            return norms
        # Pieces of one tensor join through their squares, scaled so that float64 tensors keep their range too.
        squares = torch.zeros(len(self._pieces), dtype=self.dtype, device=self._device)
        return squares.index_add_(0, self._owners, norms.square()).sqrt_()


def tensor_norms(tensors: Sequence[Tensor], minus: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Return ‖a_i - b_i‖2 of n tensors, float64 (n,) on `device`; see `TensorNorms`."""
    norms = TensorNorms([tensor.numel() for tensor in tensors], device)
    for position, (tensor, other) in enumerate(zip(tensors, minus, strict=True)):
        norms.add([position], [tensor], [other])
    return norms.result()


def _flat_pair(tensor: Tensor, other: Tensor | None, piece: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """Cut a tensor and its counterpart into flat pieces whose elements correspond."""
    if other is not None and tensor.stride() != other.stride():
        tensor, other = tensor.contiguous(), other.contiguous()
    flat = _flat(tensor)
    pieces = list(flat.split(piece)) if flat.numel() > piece else [flat]
    if other is None:
        return pieces, [None] * len(pieces)
    flat_other = _flat(other)
    return pieces, list(flat_other.split(piece)) if flat_other.numel() > piece else [flat_other]


def _flat(tensor: Tensor) -> Tensor:
    # The order of elements does not matter for a norm, so a dense tensor in any memory format is read as it lies.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def _difference_norms(left: list[Tensor], right: list[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    plain = [a for a, b in zip(left, right, strict=True) if b is None]
    paired = [(a, b) for a, b in zip(left, right, strict=True) if b is not None]
    norms_plain = iter(torch._foreach_norm(plain, 2, dtype=dtype)) if plain else iter(())
    norms_paired: list[Tensor] = []
    # One piece's difference at a time on the CPU: it is still in cache when its norm is taken.
    group = 1 if left[0].device.type == "cpu" and left[0].numel() >= _CPU_PIECE // 8 else len(paired)
    for start in range(0, len(paired), max(1, group)):
        some = paired[start : start + group]
        if some[0][0].dtype in _LOW_PRECISION or some[0][1].dtype in _LOW_PRECISION:
            differences = [a.float() - b.float() for a, b in some]
        else:
            differences = list(torch._foreach_sub([a for a, _ in some], [b for _, b in some]))
        norms_paired += torch._foreach_norm(differences, 2, dtype=dtype)
    paired_norms = iter(norms_paired)
    return [next(norms_plain) if b is None else next(paired_norms) for b in right]
