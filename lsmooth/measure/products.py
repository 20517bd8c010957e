"""Inner products of gradients with a step, tensor by tensor, in little memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsmooth.measure.norms import flat_pieces
from lsmooth.precision import accumulation_dtype


@torch.no_grad()
def products_with_step(
    gradients: Sequence[Tensor],
    minus: Sequence[Tensor | None],
    starts: Sequence[Tensor],
    stops: Sequence[Tensor],
    piece: int,
) -> list[Tensor]:
    """Return ⟨a_i - b_i, y_i - x_i⟩ of tensors, scalars in float32, or in float64 for float64 tensors.

    Differences and products are formed in float32, or float64 for float64 tensors, a piece at a time; sums over pieces
    are in float64. The error is about 1e-7 Σ_j |(a_ij - b_ij) (y_ij - x_ij)| in float32.

    Args:
        gradients: a_i.
        minus: b_i; None for 0.
        starts: x_i.
        stops: y_i.
        piece: How many elements to take at a time: two pieces are held.
    """
    return [_product(*tensors, piece) for tensors in zip(gradients, minus, starts, stops, strict=True)]


def _product(gradient: Tensor, other: Tensor | None, start: Tensor, stop: Tensor, piece: int) -> Tensor:
    wide = torch.float64 if torch.float64 in (gradient.dtype, start.dtype) else torch.float32
    if gradient.numel() <= piece and gradient.dtype == start.dtype == wide:
        # Few calls, of which small models have many.
        difference = gradient if other is None else gradient - other
        return (stop - start).mul_(difference).sum()
    parts: list[Tensor] = []
    for a, b, x, y in flat_pieces((gradient, other, start, stop), piece):
        assert a is not None
        assert x is not None
        assert y is not None
        difference = a.to(wide) if b is None else a.to(wide) - b.to(wide)
        parts.append((y.to(wide) - x.to(wide)).mul_(difference).sum())
    return torch.stack(parts).sum(dtype=accumulation_dtype(gradient.device)).to(wide)
