"""How long fits take: many coordinates, many points, with and without intervals; against a solver call a cloud."""

import numpy as np
from row import Row, interleaved
from scipy.optimize import linprog

from lsmooth import fit
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.layout import Status

# Of the general solver, to be scaled up to all coordinates.
CALLS = 20


def cloud(groups, steps):
    """Return a cloud whose smoothness grows with its gradient norm."""
    generator = np.random.default_rng(0)
    x = np.exp(generator.normal(0, 1, (steps, groups)))
    return Cloud(
        by="coordinate",
        groups=tuple(map(str, range(groups))),
        steps=np.arange(steps),
        smoothness=(1 + 2 * x) * np.exp(generator.normal(0, 0.3, (steps, groups))),
        grad_norm=x,
        status=np.full(steps, int(Status.MEASURED), dtype=np.uint8),
        loss=np.linspace(3, 1, steps),
        lr=np.full(steps, 0.1),
    )


def programme(x, y, q=0.95):
    """Find the quantile line of one cloud by a general solver."""
    n = len(x)
    return linprog(
        np.concatenate([[0, 0], np.full(n, q), np.full(n, 1 - q)]),
        A_eq=np.column_stack([np.ones(n), x, np.eye(n), -np.eye(n)]),
        b_eq=y,
        method="highs",
    )


def rows(short):
    groups, steps, points = (2_000, 200, 20_000) if short else (100_000, 200, 1_000_000)
    repeats = 3 if short else 7
    many, long = cloud(groups, steps), cloud(1, points)
    times = interleaved(
        {
            "copy": lambda: (many.grad_norm.T.copy(), many.smoothness.T.copy()),
            "many": lambda: fit.estimate(many, confidence=None),
            "many quantiles": lambda: fit.estimate(many, method="quantile", confidence=None),
            "solver": lambda: [programme(many.grad_norm[:, i], many.smoothness[:, i]) for i in range(CALLS)],
        },
        repeats,
    )
    of_one = interleaved(
        {method: lambda method=method: fit.estimate(long, method=method) for method in ("trend", "quantile")}
        | {"envelope": lambda: fit.envelope(long.grad_norm[:, 0], long.smoothness[:, 0])},
        repeats,
    )
    limit = None if short else 10.0
    return [
        Row(
            "fit.coordinates",
            f"trend, envelope, rank correlation of {groups:,} coordinates, {steps} steps each",
            times["many"],
            "s",
            limit,
            note=f"copying the points into rows takes {times['copy']:.2f} s; the search for trends, most of the rest.",
        ),
        Row("fit.quantiles", f"quantile lines of {groups:,} coordinates", times["many quantiles"], "s", limit),
        Row(
            "fit.vectorised",
            "quantile lines of many coordinates, against one call of `scipy.optimize.linprog` for each",
            times.ratio("many quantiles", "solver") * CALLS / groups,
            "x",
            note=f"measured with {CALLS} calls; rank correlation and coverage included on our side only.",
        ),
        Row(
            "fit.trend",
            f"trend of {points:,} points, with intervals",
            of_one["trend"],
            "s",
            None if short else 3.0,
        ),
        Row(
            "fit.quantile",
            f"quantile line of {points:,} points, with intervals",
            of_one["quantile"],
            "s",
            None if short else 3.0,
        ),
        Row("fit.envelope", f"envelope of {points:,} points", of_one["envelope"], "s", None if short else 1.0),
    ]
