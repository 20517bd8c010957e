"""Smoothness conditions: upper bounds of the local Lipschitz constant L.

constant        L <= L0                              plain smoothness
linear          L <= L0 + L1 ‖g‖                     Zhang et al., ICLR 2020
power           L <= L0 + Lrho ‖g‖^rho               Li et al., NeurIPS 2023; rho in [0, 2]
suboptimality   L <= H0 + H1 (f - f_low)             Alimisis et al., 2025
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.fit.lines import Floats, Lines, Misfit

if TYPE_CHECKING:
    from lsmooth.trace.cloud import Cloud

LARGEST_POWER = 2.0
# Numbers of points of the grids of powers, searched one after another; the last grid is finer than 1e-3.
_GRIDS = (21, 11, 11, 11)
_SMALLEST_POWER = 1e-3


@dataclass(frozen=True)
class Condition:
    """A smoothness condition.

    Attributes:
        name: Name as the argument `condition=`.
        constants: Names of the constant term and of the factor.
        against: What the factor multiplies, in words.
        extra: Names of further numbers of the condition.
    """

    name: str
    constants: tuple[str, str]
    against: str
    extra: tuple[str, ...] = ()


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("linear", ("L0", "L1"), "gradient norm"),
        Condition("power", ("L0", "Lrho"), "gradient norm", ("rho",)),
        Condition("suboptimality", ("H0", "H1"), "loss", ("f_low",)),
    )
}


def known_condition(name: str) -> Condition:
    """Return the condition of a name; raise InvalidArgumentError if there is none."""
    if name not in CONDITIONS:
        raise unknown_name("condition", name, CONDITIONS)
    return CONDITIONS[name]


def against_loss(cloud: Cloud, f_low: float | None) -> tuple[Cloud, float]:
    """Return a cloud with f(x_t) - f_low in place of gradient norms, and f_low.

    Args:
        cloud: Any cloud.
        f_low: A lower bound of the loss; None for the lowest loss of the well measured steps. The constants depend on
            it: H0 grows with f_low.

    Raises:
        InvalidArgumentError: f_low is above a measured loss, or not finite.
    """
    good = cloud.measured_well & np.isfinite(cloud.loss)
    lowest = float(cloud.loss[good].min()) if good.any() else 0.0
    if f_low is None:
        f_low = lowest
    elif not f_low <= lowest:
        raise InvalidArgumentError(
            f"f_low={f_low!r} is no lower bound of the loss: one of {lowest:.6g} was measured; give that or less."
        )
    elif not np.isfinite(f_low):
        raise InvalidArgumentError(f"f_low={f_low!r} is not finite; give a lower bound of the loss, such as 0.")
    gap = np.where(good, cloud.loss - f_low, np.nan)
    kept = np.where(np.isfinite(cloud.grad_norm), gap[:, None], np.nan)
    return replace(cloud, grad_norm=kept), f_low


def best_powers(x: Floats, y: Floats, lines: Callable[[Floats, Floats], Lines], misfit: Misfit) -> Floats:
    """Return the rho in [0, 2] of each row for which lines against x^rho fit best, (m,).

    For a given rho the two constants have an exact optimum, so that only rho must be searched (variable projection). It
    is searched on a grid, and then on finer grids around the best point. If a flat line is best, rho is 0.

    Args:
        x: Gradient norms, at most 1 each, (m, n).
        y: Smoothness, (m, n).
        lines: Fits the lines of many clouds.
        misfit: The quantity to minimise, from x, y, L0 and L1, one number a row.
    """
    m = len(x)
    best, step = np.full(m, LARGEST_POWER / 2), LARGEST_POWER / 2
    # At rho = 0 all points have the same x^rho; a slope of 0 at any other rho gives the same flat line.
    for points in _GRIDS:
        grid = np.clip(best[:, None] + np.linspace(-step, step, points), _SMALLEST_POWER, LARGEST_POWER)
        raised = (x[:, None, :] ** grid[:, :, None]).reshape(m * points, -1)
        repeated = np.repeat(y, points, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = misfit(raised, repeated, *lines(raised, repeated)).reshape(m, points)
        best = grid[np.arange(m), np.where(np.isnan(values), np.inf, values).argmin(axis=1)]
        step = 2 * step / (points - 1)
    _, slope = lines(x ** best[:, None], y)
    return np.where(slope > 0, best, 0.0)
