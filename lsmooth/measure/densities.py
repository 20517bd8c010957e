"""Counts all coordinates of the parameters by gradient and local Lipschitz constant, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lsmooth.measure.norms import piece_size
from lsmooth.replay.parking import brought
from lsmooth.trace.density import BINS_PER_DECADE, GRAD_DECADES, SMOOTHNESS_DECADES, Counts, edges

_GRAD_BINS = len(edges(GRAD_DECADES)) - 1
_SMOOTHNESS_BINS = len(edges(SMOOTHNESS_DECADES)) - 1
_BINS = _GRAD_BINS * _SMOOTHNESS_BINS


class DensityCounter:
    """Keeps, for each parameter tensor, a histogram over all its coordinates and all well measured steps.

    For every coordinate j it computes at a measured step

        max over gamma of |Delta_j(gamma)| / |gamma d_j|,
        min(|grad_j f(x_t)|, |grad_j f(x_t + gamma d)|) at that gamma

    (Crawshaw et al. 2022, Section 5.2), and counts this pair at the end of the step. It needs two more numbers for each
    coordinate during a measured step (float32, or float64 for float64 parameters), and 72 KiB for the counts of each
    tensor. Nothing waits for the device.

    Args:
        parameters: The parameter tensors.
        device: Device of the counts.
    """

    def __init__(self, parameters: Sequence[Tensor], device: torch.device) -> None:
        self._device = device
        self._count = len(parameters)
        # The counts of all tensors, followed by the number of counted steps.
        self._flat = torch.zeros(self._count * _BINS + 1, dtype=torch.int64, device=device)
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}
        self._largest: dict[int, Tensor] = {}
        self._smaller: dict[int, Tensor] = {}

    def begin(
        self,
        positions: Sequence[int],
        start: Sequence[Tensor],
        stop: Sequence[Tensor],
        devices: Sequence[torch.device],
    ) -> None:
        """Begin a measured step from `start` to `stop`, the values of the tensors at `positions` before and after.

        Both may be parked on the host; `devices` are those of the tensors themselves.
        """
        self.clear()
        for i, before, after, device in zip(positions, start, stop, devices, strict=True):
            self._ends[i] = before, after
            wide = torch.float64 if before.dtype == torch.float64 else torch.float32
            # Smaller than any estimate.
            self._largest[i] = torch.full((before.numel(),), -1.0, dtype=wide, device=device)
            self._smaller[i] = torch.zeros_like(self._largest[i])

    @torch.no_grad()
    def add(self, position: int, gamma: float, first: Tensor | None, gradient: Tensor | None) -> None:
        """Add the gradients of a tensor at x_t and at x_t + gamma d; a missing one counts as 0."""
        if position not in self._ends:
            return
        start, stop = self._ends[position]
        largest, smaller = self._largest[position], self._smaller[position]
        order = sorted(range(start.dim()), key=start.stride, reverse=True)
        flat = [None if t is None else t.permute(order).reshape(-1) for t in (start, stop, first, gradient)]
        device = largest.device
        piece = piece_size(device)
        for begin in range(0, start.numel(), piece):
            part = slice(begin, begin + piece)
            a, b, g, h = (None if t is None else brought(t[part], device).to(largest.dtype) for t in flat)
            assert a is not None
            assert b is not None
            zero = torch.zeros((), dtype=largest.dtype, device=device)
            g, h = zero if g is None else g, zero if h is None else h
            ratio = torch.sub(h, g).abs() / (b - a).abs_().mul_(gamma)
            # False for the NaN of coordinates that did not move.
            better = ratio > largest[part]
            largest[part] = torch.where(better, ratio, largest[part])
            smaller[part] = torch.where(better, torch.minimum(g.abs(), h.abs()), smaller[part])

    @torch.no_grad()
    def end(self, well: Tensor, scale: Tensor | None) -> None:
        """Count the pairs of the step.

        Args:
            well: Whether the step was measured well, a bool scalar; if not, nothing is counted.
            scale: The scaler's factor that gradients carry; None for 1.
        """
        for i, largest in self._largest.items():
            counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=largest.device)
            one = torch.ones(1, dtype=torch.int64, device=largest.device)
            piece = piece_size(largest.device)
            for ratio, grad in zip(largest.split(piece), self._smaller[i].split(piece), strict=True):
                factor = None if scale is None else scale.to(ratio)
                row = _bin(grad if factor is None else grad / factor, GRAD_DECADES)
                column = _bin(ratio if factor is None else ratio / factor, SMOOTHNESS_DECADES)
                # NaN is outside of the bins: estimates of -1, and values that are not finite.
                inside = (row >= 0) & (row < _GRAD_BINS) & (column >= 0) & (column < _SMOOTHNESS_BINS)
                where = torch.where(inside, row * _SMOOTHNESS_BINS + column, torch.full_like(row, _BINS))
                counts.scatter_add_(0, where.to(torch.int64), one.expand(len(where)))
            mine = self._flat[i * _BINS : (i + 1) * _BINS]
            mine.add_(counts[:-1].to(self._device, non_blocking=True) * well)
        self._flat[-1].add_(well)
        self.clear()

    def clear(self) -> None:
        """Forget the step in progress."""
        self._ends, self._largest, self._smaller = {}, {}, {}

    def snapshot(self) -> Tensor:
        """Return a copy of the counts and of the number of steps, one flat int64 tensor on the device."""
        return self._flat.clone()

    def load(self, flat: Tensor) -> None:
        """Continue from the counts of a snapshot."""
        self._flat.copy_(flat)

    def unpacked(self, flat: np.ndarray) -> Counts:
        """Return a snapshot on the host as counts by tensor and bin."""
        return Counts(flat[:-1].reshape(self._count, _GRAD_BINS, _SMOOTHNESS_BINS), int(flat[-1]))

    @staticmethod
    def packed(counts: Counts) -> Tensor:
        """Return counts by tensor and bin as a snapshot."""
        return torch.from_numpy(np.append(counts.counts.ravel(), counts.steps).astype(np.int64))


def _bin(values: Tensor, decades: tuple[int, int]) -> Tensor:
    """Return the bin of each value as a floating-point number, negative or too large outside of all bins."""
    return values.log10().sub_(decades[0]).mul_(BINS_PER_DECADE).floor_()
