"""The table of fit methods: the line of each, the quantity that it minimises, and the intervals of its constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lsmooth.errors import unknown_name
from lsmooth.fit.binned import binned_envelope, binned_line, binned_quantile
from lsmooth.fit.envelopes import envelopes, mean_bound
from lsmooth.fit.lines import Floats, Lines, Misfit, at_one_norm
from lsmooth.fit.quantiles import pinball, quantiles
from lsmooth.fit.sandwich import trend_intervals
from lsmooth.fit.squares import asymmetric_squares, expectiles, least_squares_lines, squares
from lsmooth.fit.trends import log_misfit, middles, trends
from lsmooth.fit.uncertainty import (
    Interval,
    envelope_interval,
    expectile_interval,
    quantile_interval,
    squares_interval,
)

if TYPE_CHECKING:
    from lsmooth.trace.density import Density

# Number of clouds that are drawn for an interval.
_RESAMPLES = 400
# Ends of the intervals of L0 and L1 of m lines, (2, m) each, and why a line has none.
Intervals = tuple[Floats, Floats, list[str]]


@dataclass(frozen=True)
class Method:
    """A method that fits a line to a cloud. Where a function takes a share, it is the argument named by `share`.

    Attributes:
        name: Name as the argument `method=`.
        meaning: Where the line runs, in words.
        formula: The quantity that the line minimises; r is smoothness minus line.
        found: How the minimum is found, in words.
        fitted: Returns L0 and L1, (m,) each, from x and y, (m, n) each, and the share.
        misfit: Returns, from the share, the function that the line minimises.
        height: Returns the level of flat lines, (m,), from y, (m, n), and the share.
        binned: Returns L0 and L1 of a density, from the density and the share.
        intervals: Returns intervals of m lines, from x, y, lines (2, m), the share, confidence, and a seed for each
            row.
        share: Name of the argument of `lsmooth.estimate` that the method depends on; "" for none.
    """

    name: str
    meaning: str
    formula: str
    found: str
    fitted: Callable[[Floats, Floats, float], Lines]
    misfit: Callable[[float], Misfit]
    height: Callable[[Floats, float], Floats]
    binned: Callable[[Density, float], tuple[float, float]]
    intervals: Callable[[Floats, Floats, Floats, float, float, Sequence[Sequence[int]]], Intervals]
    share: str = ""

    def lines(self, x: Floats, y: Floats, share: float) -> Lines:
        """Return the lines of m clouds; flat lines for rows whose gradient norms are all the same."""
        alike = at_one_norm(x)
        if not alike.any():
            return self.fitted(x, y, share)
        level, slope = np.zeros(len(x)), np.zeros(len(x))
        if not alike.all():
            level[~alike], slope[~alike] = self.fitted(x[~alike], y[~alike], share)
        level[alike] = self.height(y[alike], share)
        return level, slope


def _drawn(
    interval: Callable[..., Interval],
    x: Floats,
    y: Floats,
    lines: Floats,
    share: float,
    confidence: float,
    seeds: Sequence[Sequence[int]],
) -> Intervals:
    """Return the intervals of m lines, each with random numbers from its own seed."""
    ends = np.empty((2, *lines.shape))
    reasons = []
    for row, seed in enumerate(seeds):
        generator = np.random.default_rng(list(seed))
        sampling = {"confidence": confidence, "resamples": _RESAMPLES, "generator": generator}
        shares = () if np.isnan(share) else (share,)
        found = interval(x[row], y[row], lines[:, row], *shares, **sampling)
        ends[:, :, row] = found.low, found.high
        reasons.append(found.reason)
    return ends[0], ends[1], reasons


def _of_trends(
    x: Floats, y: Floats, lines: Floats, share: float, confidence: float, seeds: Sequence[Sequence[int]]
) -> Intervals:
    return *trend_intervals(x, y, lines, confidence), [""] * len(seeds)


def _expectile_heights(y: Floats, tau: float) -> Floats:
    from scipy.stats import expectile

    return np.array([expectile(row, alpha=tau) for row in y])


def _order_statistics(y: Floats, q: float) -> Floats:
    rank = int(np.ceil(q * y.shape[1])) - 1
    return np.partition(y, rank, axis=1)[:, rank]


METHODS = {
    method.name: method
    for method in (
        Method(
            "trend",
            meaning="runs through the middle, where the noise is even",
            formula="Huber's loss of log smoothness − log line, with its scale (Huber 1981)",
            found="damped Newton steps within L0, L1 >= 0",
            fitted=lambda x, y, share: trends(x, y),
            misfit=lambda share: log_misfit,
            height=lambda y, share: middles(y),
            binned=partial(binned_line, lambda x, y, share: trends(x, y)),
            intervals=_of_trends,
        ),
        Method(
            "quantile",
            meaning="lies above a share q of the steps (Koenker and Bassett 1978)",
            formula="mean max(q r, (q − 1) r)",
            found="a vertex of the linear programme, accepted by its optimality conditions",
            fitted=quantiles,
            misfit=pinball,
            height=_order_statistics,
            binned=binned_quantile,
            intervals=partial(_drawn, quantile_interval),
            share="q",
        ),
        Method(
            "envelope",
            meaning="the lowest line above every step",
            formula="mean line, no r above 0",
            found="the edge of the upper convex hull over the mean gradient norm",
            fitted=lambda x, y, share: envelopes(x, y),
            misfit=lambda share: mean_bound,
            height=lambda y, share: y.max(axis=1),
            binned=lambda density, share: binned_envelope(density),
            intervals=partial(_drawn, envelope_interval),
        ),
        Method(
            "least-squares",
            meaning="the mean on the plain scale, on which few large points decide",
            formula="mean r²",
            found="closed form",
            fitted=lambda x, y, share: least_squares_lines(x, y),
            misfit=lambda share: squares,
            height=lambda y, share: y.mean(axis=1),
            binned=partial(binned_line, lambda x, y, share: least_squares_lines(x, y)),
            intervals=partial(_drawn, squares_interval),
        ),
        Method(
            "expectile",
            meaning="least squares that weigh steps above the line tau / (1 − tau) times (Newey and Powell 1987)",
            formula="mean \\|tau − 1(r < 0)\\| r²",
            found="weighted least squares, until the same steps lie above",
            fitted=expectiles,
            misfit=asymmetric_squares,
            height=_expectile_heights,
            binned=partial(binned_line, expectiles),
            intervals=partial(_drawn, expectile_interval),
            share="tau",
        ),
    )
}


def known_methods(names: str | Sequence[str]) -> tuple[Method, ...]:
    """Return the methods of some names; raise InvalidArgumentError for an unknown name."""
    chosen = (names,) if isinstance(names, str) else tuple(names)
    for name in chosen:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    return tuple(METHODS[name] for name in chosen)
