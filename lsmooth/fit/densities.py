"""L0 and L1 over all coordinates of each tensor, fitted to densities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lsmooth.fit.batches import FEWEST
from lsmooth.fit.binned import bin_points, rank_correlation
from lsmooth.fit.methods import Method
from lsmooth.trace.density import Density
from lsmooth.trace.reader import Trace

NO_INTERVAL = "no intervals: densities do not keep the order of steps"
_NUMBERS = ("L0", "L1", "L0_low", "L0_high", "L1_low", "L1_high", "spearman", "coverage")


def estimate_densities(trace: Trace, methods: Sequence[tuple[Method, float]]) -> pd.DataFrame:
    """Return L0 and L1 over all coordinates of each parameter tensor; columns as for `lsmooth.estimate`.

    Args:
        trace: A trace with densities.
        methods: The lines to fit, each with the share that it depends on.

    Raises:
        TraceError: The trace has no densities, or they are damaged.
    """
    rows = []
    for parameter in trace.parameters:
        density = trace.density(parameter)
        points = int(density.counts.sum())
        refusal = _refusal(density, points)
        notes = [refusal or NO_INTERVAL]
        if density.left_out:
            notes.append(f"left out: {density.left_out} did not move, are zero or beyond the bins")
        for method, share in methods:
            row = dict.fromkeys(_NUMBERS, np.nan)
            if not refusal:
                x, y, weights = bin_points(density)
                row["L0"], row["L1"] = method.binned(density, share)
                row["coverage"] = float(weights[y <= row["L0"] + row["L1"] * x].sum() / points)
                row["spearman"] = rank_correlation(density)
            rows.append(
                {"group": parameter, "method": method.name, **row, "points": points, "left_out": density.left_out}
                | {"reason": "; ".join(notes)}
            )
    return pd.DataFrame(rows)


def _refusal(density: Density, points: int) -> str:
    """Return why no line can be fitted to a density; "" if one can."""
    if points < FEWEST:
        return f"{points} usable points, {FEWEST} are needed"
    return "all points lie in one bin of gradients" if density.counts.any(axis=1).sum() == 1 else ""
