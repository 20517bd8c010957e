"""Singular values of the matrix of a gradient or displacement."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(tensor: Tensor, minus: Tensor | None, dtype: torch.dtype, piece: int) -> Tensor:
    """Return the singular values of the matrix (tensor - minus).flatten(1), ascending, NaN where it is not finite.

    They are the square roots of the eigenvalues of A A^T, which is summed in float64 over pieces of the longer side.
    That is several times faster than a singular value decomposition in float32. The error of a singular value is at
    most about 1e-8 times the largest one, and that of the nuclear norm of a matrix with m rows or columns m times that.

    Args:
        tensor: A tensor of at least two dimensions.
        minus: Tensor to subtract; None for nothing.
        dtype: Dtype to compute in.
        piece: Number of elements of the difference to hold at a time.
    """
    matrix = tensor.flatten(1)
    other = None if minus is None else minus.flatten(1)
    if matrix.shape[0] > matrix.shape[1]:
        matrix, other = matrix.T, None if other is None else other.T
    short, long = matrix.shape
    width = max(1, piece // max(1, short))
    scale = None
    if tensor.dtype == torch.float64:
        # Only the squares of float64 numbers can leave the range of float64.
        whole = matrix if other is None else matrix - other
        scale = divisor(torch.linalg.vector_norm(whole, float("inf")))
    gram = torch.zeros(short, short, dtype=dtype, device=tensor.device)
    for start in range(0, long, width):
        part = matrix[:, start : start + width].to(dtype, copy=True)
        if other is not None:
            part.sub_(other[:, start : start + width])
        if scale is not None:
            part.div_(scale)
        gram.addmm_(part, part.T)
    finite = torch.isfinite(gram).all()
    squares = torch.linalg.eigvalsh(torch.where(finite, gram, torch.zeros_like(gram)))
    values = squares.clamp_min_(0).sqrt_()
    if scale is not None:
        values = values * scale
    return torch.where(finite, values, torch.full_like(values, float("nan")))


def divisor(scale: Tensor) -> Tensor:
    """Return `scale` where it is positive and finite, and 1 elsewhere."""
    return torch.where((scale > 0) & torch.isfinite(scale), scale, torch.ones_like(scale))
