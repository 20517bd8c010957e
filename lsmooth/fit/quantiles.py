"""Quantile lines, computed exactly for many clouds at a time: each search ends in a vertex of a linear programme."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lsmooth.fit.lines import Floats, Lines, Misfit, line_of, share_between

# More halvings than a bracket of float64 numbers permits.
_HALVINGS = 120


def quantile(grad_norm: ArrayLike, smoothness: ArrayLike, q: float = 0.95) -> tuple[float, float]:
    """Return the line that lies above a share q of a cloud: quantile regression with both constants non-negative.

        (L0, L1) = argmin over L0, L1 >= 0 of sum_i max(q r_i, (q - 1) r_i),  r_i = smoothness_i - L0 - L1 grad_norm_i

    (Koenker and Bassett, "Regression quantiles", Econometrica 1978). This is a linear programme, and the result one of
    its vertices.

    Args:
        grad_norm: Gradient norms, finite and non-negative, (n,).
        smoothness: Local Lipschitz constants, finite and non-negative, (n,).
        q: Share of the points to lie below the line, from 1e-6 to 1 - 1e-6.

    Returns:
        L0 in the unit of smoothness, L1 in that of smoothness over gradient norm.

    Raises:
        InvalidArgumentError: The arrays do not match, hold anything else, all points lie at one gradient norm, or q
            is out of range.
    """
    check_quantile(q)
    return line_of(lambda x, y: quantiles(x, y, q), grad_norm, smoothness)


def check_quantile(q: float) -> None:
    """Raise InvalidArgumentError unless q is between 0 and 1, and 1e-6 away from both."""
    share_between("q", q, "0.95")


def quantiles(x: Floats, y: Floats, q: float) -> Lines:
    """Return `quantile` of each row of two matrices (m, n): L0 and L1, each (m,).

    The optimal line is flat, runs through the origin, or runs through two points of the cloud. The first two kinds are
    quantiles of numbers, and optimality conditions say whether they are optimal. For the third kind, the slope is
    bracketed. At a given slope the best level is an order statistic of y - slope x, and the points above the line give
    the objective's derivative with respect to the slope. The bracket shrinks until the line through the two points that
    hold the order statistic at its ends satisfies the optimality conditions of the linear programme.
    """
    m, n = x.shape
    rank = max(int(np.ceil(n * q)) - 1, 0)
    level, slope = np.zeros(m), np.zeros(m)
    # Flat lines are optimal where the derivative at slope 0 is not negative.
    at_zero = _Pencil(x, y, q, rank)
    flat_point, flat_rise = at_zero.evaluate(np.zeros(m))
    level[:] = y[np.arange(m), flat_point]
    active = np.flatnonzero(flat_rise < 0)
    active = active[at_zero.first_rise(active) < 0]
    if not len(active):
        return level, slope
    steep, optimal = _through_origin(x[active], y[active], q)
    done = active[optimal]
    level[done], slope[done] = 0.0, steep[optimal]
    keep = ~optimal
    active, steep, low_point = active[keep], steep[keep], flat_point[active][keep]
    if not len(active):
        return level, slope
    level[active], slope[active] = _through_two_points(x[active], y[active], q, rank, low_point, steep)
    return level, slope


def pinball(q: float) -> Misfit:
    """Return the function that a quantile line minimises: the mean pinball loss of each row."""

    def misfit(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
        residual = y - level[:, None] - slope[:, None] * x
        return np.mean(np.maximum(q * residual, (q - 1) * residual), axis=1)

    return misfit


class _Pencil:
    """Clouds whose lines are evaluated at given slopes: the point on the best line, and the objective's derivative."""

    def __init__(self, x: Floats, y: Floats, q: float, rank: int) -> None:
        self.x, self.y, self.q, self.rank = x, y, q, rank
        self.rows = np.arange(len(x))
        self.total = x.sum(axis=1)
        self.work = np.empty_like(x)

    def evaluate(self, slope: Floats) -> tuple[NDArray[np.intp], Floats]:
        """Return the point that holds the order statistic, and the derivative of the profile, each (m,)."""
        np.multiply(self.x, slope[:, None], out=self.work)
        residual = np.subtract(self.y, self.work, out=self.work)
        order = np.partition(residual, self.rank, axis=1)[:, self.rank]
        point = (residual == order[:, None]).argmax(axis=1)
        below, on = residual < order[:, None], residual == order[:, None]
        count, ties = below.sum(axis=1), on.sum(axis=1)
        mass, tied_mass = np.einsum("ij,ij->i", below, self.x), np.einsum("ij,ij->i", on, self.x)
        # Weights are q above the line and q - 1 below; points on the line share the weight that balances these.
        shared = (count - self.q * (self.x.shape[1] - ties)) / ties
        return point, mass - self.q * (self.total - tied_mass) - shared * tied_mass

    def first_rise(self, rows: NDArray[np.intp]) -> Floats:
        """Return the derivative just right of slope 0: among points of equal y, those with large x fall below first."""
        x, y = self.x[rows], self.y[rows]
        order = np.partition(y, self.rank, axis=1)[:, self.rank]
        below, on = y < order[:, None], y == order[:, None]
        sinking = self.rank - below.sum(axis=1)
        falling = -np.sort(np.where(on, -x, np.inf), axis=1)
        sunk = np.arange(x.shape[1]) < sinking[:, None]
        mass = np.einsum("ij,ij->i", below, x) + np.where(sunk, falling, 0.0).sum(axis=1)
        here = falling[np.arange(len(x)), sinking]
        return mass - self.q * (x.sum(axis=1) - here) - (self.rank - self.q * (x.shape[1] - 1)) * here

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Keep only some of the clouds."""
        self.x, self.y, self.total = self.x[rows], self.y[rows], self.total[rows]
        self.rows = np.arange(len(self.x))
        self.work = np.empty_like(self.x)


def _through_origin(x: Floats, y: Floats, q: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the best lines with L0 = 0, and whether L0 = 0 is optimal.

    The slope is the q-quantile of y / x with weights x. L0 = 0 is optimal if the weights of the residuals, q above the
    line and q - 1 below, sum to at most zero.
    """
    m, n = x.shape
    rows = np.arange(m)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Points at x = 0 do not affect the slope; they lie above the line or on it.
        ratio = np.where(x > 0, y / x, np.inf)
    order = ratio.argsort(axis=1)
    mass = np.cumsum(np.take_along_axis(x, order, axis=1), axis=1)
    target = q * mass[:, -1]
    position = np.minimum((mass < target[:, None]).sum(axis=1), n - 1)
    slope = ratio[rows, order[rows, position]]
    below, on = ratio < slope[:, None], ratio == slope[:, None]
    below_mass, on_mass = np.einsum("ij,ij->i", below, x), np.einsum("ij,ij->i", on, x)
    # Points on the line share the weight that balances the slope's derivative.
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = -(q * (mass[:, -1] - below_mass - on_mass) + (q - 1) * below_mass) / on_mass
    # A point at the origin lies on every such line, and has the weight q - 1 that keeps the line there.
    under = below.sum(axis=1) + ((x == 0) & (y == 0)).sum(axis=1)
    ties = on.sum(axis=1)
    balance = q * (n - under - ties) + (q - 1) * under + shared * ties
    return slope, np.isfinite(slope) & (balance <= 1e-12 * n)


def _through_two_points(x: Floats, y: Floats, q: float, rank: int, low_point: NDArray[np.intp], steep: Floats) -> Lines:
    """Return the best lines of clouds whose level and slope are positive, by a search between slope 0 and `steep`."""
    m = len(x)
    level, slope = np.zeros(m), np.zeros(m)
    active = np.arange(m)
    pencil = _Pencil(x, y, q, rank)
    low, high = np.zeros(m), np.where(np.isfinite(steep) & (steep > 0), steep, 1.0)
    high_point, rise = pencil.evaluate(high)
    low_rise = np.full(m, -np.inf)
    while (rise < 0).any():
        short = rise < 0
        low[short], low_point[short], low_rise[short] = high[short], high_point[short], rise[short]
        high = np.where(short, 2 * high, high)
        high_point, rise = pencil.evaluate(high)
    high_rise = rise
    for turn in range(_HALVINGS):
        here = pencil.rows
        # The line through the points at both ends of the bracket is the vertex once no other point lies in between.
        left_x, left_y = pencil.x[here, low_point], pencil.y[here, low_point]
        right_x, right_y = pencil.x[here, high_point], pencil.y[here, high_point]
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = (left_y - right_y) / (left_x - right_x)
            secant = low - low_rise * (high - low) / (high_rise - low_rise)
        middle = 0.5 * (low + high)
        guess = (
            crossing if turn % 3 == 0 else np.where(np.isfinite(secant), secant, middle) if turn % 3 == 1 else middle
        )
        inside = (guess > low) & (guess < high)
        at = np.where(inside, guess, middle)
        point, rise = pencil.evaluate(at)
        down = rise < 0
        found = np.zeros(len(active), dtype=bool)
        if turn % 3 == 0:
            found = inside & _is_vertex(pencil, low_point, high_point)
        exhausted = (middle <= low) | (middle >= high) | (turn == _HALVINGS - 1)
        done = found | exhausted
        if done.any():
            slope[active[done]] = np.where(found, at, middle)[done]
            chosen = np.where(found, low_point, point)[done]
            level[active[done]] = pencil.y[done, chosen] - slope[active[done]] * pencil.x[done, chosen]
        low, low_point, low_rise = (
            np.where(down, at, low),
            np.where(down, point, low_point),
            np.where(down, rise, low_rise),
        )
        high, high_point, high_rise = (
            np.where(down, high, at),
            np.where(down, high_point, point),
            np.where(down, high_rise, rise),
        )
        if done.all():
            break
        if done.any():
            keep = ~done
            pencil.keep(keep)
            active = active[keep]
            low, low_point, low_rise = low[keep], low_point[keep], low_rise[keep]
            high, high_point, high_rise = high[keep], high_point[keep], high_rise[keep]
    return np.maximum(level, 0.0), slope


def _is_vertex(pencil: _Pencil, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Say whether the line through two points of each cloud, whose slope was evaluated last, is optimal.

    It is optimal if the two points can have weights between q - 1 and q such that the weights of all points, and the
    weights times x, sum to zero. `pencil.work` holds y - slope x.
    """
    x, q, rows = pencil.x, pencil.q, pencil.rows
    residual = pencil.work
    on = residual[rows, one]
    below = residual < on[:, None]
    below[rows, one] = below[rows, other] = False
    count = below.sum(axis=1)
    mass = np.einsum("ij,ij->i", below, x)
    one_x, other_x = x[rows, one], x[rows, other]
    n = x.shape[1]
    weights = q * (n - 2) - count
    moments = q * (pencil.total - one_x - other_x) - mass
    with np.errstate(divide="ignore", invalid="ignore"):
        # Solve w1 + w2 = -weights, w1 x1 + w2 x2 = -moments.
        second = (weights * one_x - moments) / (other_x - one_x)
    first = -weights - second
    slack = 1e-9
    good = (first >= q - 1 - slack) & (first <= q + slack) & (second >= q - 1 - slack) & (second <= q + slack)
    return good & (one != other)
