"""The methods of fitting, one row each: what the line is, what it makes small, and how sure its constants are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lsmooth.errors import unknown_name
from lsmooth.fit.binned import binned_envelope, binned_quantile, binned_trend
from lsmooth.fit.envelopes import envelopes, mean_bound
from lsmooth.fit.lines import Floats, Lines, Misfit, at_one_norm
from lsmooth.fit.quantiles import pinball, quantiles
from lsmooth.fit.squares import squares, trends
from lsmooth.fit.uncertainty import Interval, envelope_interval, resampled_interval

if TYPE_CHECKING:
    from lsmooth.trace.density import Density

# Clouds drawn for each interval.
_RESAMPLES = 400


@dataclass(frozen=True)
class Method:
    """A way to lay a line over a cloud.

    Attributes:
        name: How it is asked for.
        meaning: Where the line runs.
        formula: What it makes small; r is smoothness less line.
        found: How that is done.
        fitted: Its lines: x and y, (m, n) each, and the share q give L0 and L1, (m,) each.
        misfit: What it makes small, at a share q.
        height: Its level where the line is flat: y of each row in rising order, (m, n), and the share q to (m,).
        binned: L0 and L1 of a density, at a share q.
        interval: The interval of one cloud's line: x, y, (L0, L1), the share q, confidence, resamples and generator.
    """

    name: str
    meaning: str
    formula: str
    found: str
    fitted: Callable[[Floats, Floats, float], Lines]
    misfit: Callable[[float], Misfit]
    height: Callable[[Floats, float], Floats]
    binned: Callable[[Density, float], tuple[float, float]]
    interval: Callable[..., Interval]

    def lines(self, x: Floats, y: Floats, q: float) -> Lines:
        """Return the lines of m clouds; flat ones where all points of a row lie at one abscissa."""
        alike = at_one_norm(x)
        if not alike.any():
            return self.fitted(x, y, q)
        level, slope = np.zeros(len(x)), np.zeros(len(x))
        if not alike.all():
            level[~alike], slope[~alike] = self.fitted(x[~alike], y[~alike], q)
        level[alike] = self.height(np.sort(y[alike], axis=1), q)
        return level, slope

    def interval_of(
        self, x: Floats, y: Floats, line: Floats, *, q: float, confidence: float, seed: Sequence[int]
    ) -> Interval:
        """Return the interval of one cloud's line, from random numbers of a seed."""
        generator = np.random.default_rng(list(seed))
        return self.interval(x, y, line, q, confidence=confidence, resamples=_RESAMPLES, generator=generator)


METHODS = {
    method.name: method
    for method in (
        Method(
            "trend",
            meaning="runs through the middle",
            formula="mean r²",
            found="closed form",
            fitted=lambda x, y, q: trends(x, y),
            misfit=lambda q: squares,
            height=lambda ordered, q: ordered.mean(axis=1),
            binned=binned_trend,
            interval=lambda x, y, line, q, **sampling: resampled_interval(x, y, line, q=None, **sampling),
        ),
        Method(
            "quantile",
            meaning="lies above a share q of the steps (Koenker and Bassett 1978)",
            formula="mean max(q r, (q − 1) r)",
            found="a vertex of the linear programme, accepted by its optimality conditions",
            fitted=quantiles,
            misfit=pinball,
            height=lambda ordered, q: ordered[:, int(np.ceil(q * ordered.shape[1])) - 1],
            binned=binned_quantile,
            interval=lambda x, y, line, q, **sampling: resampled_interval(x, y, line, q=q, **sampling),
        ),
        Method(
            "envelope",
            meaning="the lowest line above every step",
            formula="mean line, no r above 0",
            found="the edge of the upper convex hull over the mean gradient norm",
            fitted=lambda x, y, q: envelopes(x, y),
            misfit=lambda q: mean_bound,
            height=lambda ordered, q: ordered[:, -1],
            binned=binned_envelope,
            interval=lambda x, y, line, q, **sampling: envelope_interval(x, y, line, **sampling),
        ),
    )
}


def known_methods(names: str | Sequence[str]) -> tuple[Method, ...]:
    """Return methods by their names; raise InvalidArgumentError where there is none of a name."""
    chosen = (names,) if isinstance(names, str) else tuple(names)
    for name in chosen:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    return tuple(METHODS[name] for name in chosen)
