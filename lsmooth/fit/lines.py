"""Common types and checks of lines y = L0 + L1 x with L0, L1 >= 0, fitted to clouds of n points (x_i, y_i).

x is the gradient norm and y the smoothness. Functions on matrices take one cloud a row, (m, n), and return L0 and L1 of
each row, (m,). Each fit method has its own module; `lsmooth.fit.methods` lists them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lsmooth.errors import InvalidArgumentError

Floats = NDArray[np.float64]
Lines = tuple[Floats, Floats]
# The quantity that a method minimises, from x, y, L0 and L1, one number a row.
Misfit = Callable[[Floats, Floats, Floats, Floats], Floats]

# Gradient norms that differ by at most this share of the largest count as equal, as float32 hardly tells them apart.
ONE_NORM = 1e-6
# Shares and weights nearer to 0 or 1 than this leave the losses of half of the points to rounding.
LEAST_SHARE = 1e-6


def at_one_norm(x: Floats) -> NDArray[np.bool_]:
    """Say of each row of gradient norms, (m, n), whether all are equal to the precision of float32, bool (m,)."""
    largest = x.max(axis=1)
    return largest - x.min(axis=1) <= ONE_NORM * largest


def share_between(name: str, value: float, example: str) -> None:
    """Raise InvalidArgumentError unless a share of points, or a weight, leaves something to either side of a line."""
    if not LEAST_SHARE <= value <= 1 - LEAST_SHARE:
        raise InvalidArgumentError(
            f"{name}={value!r} is out of range; give a number from {LEAST_SHARE:g} to {1 - LEAST_SHARE:g}, such as "
            f"{example}, or take the envelope for a line above all points."
        )


def line_of(
    lines: Callable[[Floats, Floats], Lines], grad_norm: ArrayLike, smoothness: ArrayLike
) -> tuple[float, float]:
    """Fit one cloud with a function for many; values are scaled to at most 1, so that squares stay in range."""
    x, y = np.asarray(grad_norm, dtype=np.float64), np.asarray(smoothness, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InvalidArgumentError(
            f"grad_norm has shape {x.shape} and smoothness {y.shape}; give two arrays of one length."
        )
    for name, values in (("grad_norm", x), ("smoothness", y)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise InvalidArgumentError(
                f"{name} holds negative, infinite or missing numbers; fit `Cloud.usable` points."
            )
    if len(x) < 2 or at_one_norm(x[None])[0]:
        raise InvalidArgumentError("All points lie at one gradient norm; L0 and L1 need at least two.")
    unit_x, unit_y = x.max(), y.max() or 1.0
    level, slope = lines(x[None] / unit_x, y[None] / unit_y)
    # The constants of clouds near the ends of float64 may lie beyond it.
    with np.errstate(over="ignore", invalid="ignore"):
        return float(level[0] * unit_y), float(slope[0] * (unit_y / unit_x))
