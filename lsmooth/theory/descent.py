"""Lemma 1 along a trace: compares changes of the loss with those that (L0, L1)-smoothness allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError

if TYPE_CHECKING:
    import pandas as pd

    from lsmooth.trace.reader import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DescentCheck:
    """Lemma 1 along a trace.

    Attributes:
        L0: Constant of the check, in the unit of smoothness.
        L1: Constant of the check, in that of smoothness over gradient norm.
        frame: One row for each usable step: `step`; `slope`, <grad f(x_t), d>; `predicted`, the largest change of the
            loss that Lemma 1 allows; `seen`, f(x_{t+1}) - f(x_t) on the same batch; `reach`, L1 ‖d‖, which the lemma
            needs to be at most 1; `holds`, whether seen <= predicted up to rounding.
        share: Share of the steps within reach where the bound holds; NaN without any.
        within_reach: Number of steps within reach.
    """

    L0: float
    L1: float
    frame: pd.DataFrame
    share: float
    within_reach: int


def descent_check(
    trace: Trace, *, L0: float | None = None, L1: float | None = None, method: str = "envelope"
) -> DescentCheck:
    """Compare the changes of the loss in a trace with those that (L0, L1)-smoothness allows.

    From ‖grad f(y) - grad f(x)‖ <= (L0 + L1 ‖grad f(x)‖) ‖y - x‖ along the segment from x to y = x + d follows, by
    integrating,

        f(x + d) <= f(x) + <grad f(x), d> + (L0 + L1 ‖grad f(x)‖) ‖d‖² / 2      for ‖d‖ <= 1/L1

    (the global form of the paper's Lemma 1). The slope <grad f(x), d> is read from the trace. Traces of format 1.0
    lack the slope. There it is the derivative at 0 of a polynomial of degree 4 fitted to the losses along the segment,
    and no larger than Σ ‖grad_S f(x)‖ ‖d_S‖ over the parameter tensors S.

    Args:
        trace: An open trace with the endpoint.
        L0: Constant; both are fitted to the trace by default.
        L1: Constant; give both or none.
        method: Line that is fitted, see `lsmooth.fit.estimate`; "envelope" lies above all points.

    Raises:
        InvalidArgumentError: One of L0 and L1 is given without the other, or one is negative.
        TraceError: The trace has no losses at the segments' ends, or too few usable steps to fit.
    """
    if (L0 is None) != (L1 is None):
        raise InvalidArgumentError("L0 and L1 belong together; give both, or none to have them fitted.")
    if not trace.has("loss_next"):
        raise TraceError(f"{trace.path} was recorded without the endpoint; record with endpoint=True.")
    if L0 is None or L1 is None:
        L0, L1 = _fitted(trace, method)
    if not (L0 >= 0 and L1 >= 0):
        raise InvalidArgumentError(f"L0={L0} and L1={L1} must be at least 0.")
    frame = _changes(trace, L0, L1)
    near = frame["reach"] <= 1
    share = float(frame.loc[near, "holds"].mean()) if near.any() else math.nan
    return DescentCheck(L0=float(L0), L1=float(L1), frame=frame, share=share, within_reach=int(near.sum()))


def _changes(trace: Trace, L0: float, L1: float) -> pd.DataFrame:
    """Return `DescentCheck.frame`."""
    import pandas as pd

    cloud = trace.cloud("global")
    grads, moves = (trace.read(name).astype(np.float64) for name in ("grad_norm", "step_norm"))
    fitted = _slopes(trace, (grads * moves).sum(axis=1))
    recorded = trace.read("slope") if trace.has("slope") else np.full(len(trace), np.nan)
    known = ~np.isnan(recorded)
    slope = np.where(known, recorded, fitted)
    moved = np.sqrt((moves**2).sum(axis=1))
    seen = trace.read("loss_next") - trace.loss
    predicted = slope + (L0 + L1 * cloud.grad_norm[:, 0]) * moved**2 / 2
    # Losses are sums in the model's dtype. A fitted slope carries their rounding, some ten times larger.
    numbers = np.finfo(np.float64 if trace.metadata.get("dtype") == "float64" else np.float32)
    rounding = np.where(known, 4, 32) * float(numbers.eps) * np.abs(trace.loss)
    frame = pd.DataFrame(
        {
            "step": trace.steps,
            "slope": slope,
            "predicted": predicted,
            "seen": seen,
            "reach": L1 * moved,
            "holds": seen <= predicted + rounding,
        }
    )
    return frame[cloud.usable[:, 0]].reset_index(drop=True)


def _fitted(trace: Trace, method: str) -> tuple[float, float]:
    from lsmooth.fit import estimate

    row = estimate(trace, "global", method=method, confidence=None).iloc[0]
    if math.isnan(row["L0"]):
        raise TraceError(f"L0 and L1 cannot be fitted to {trace.path}: {row['reason']}.")
    return float(row["L0"]), float(row["L1"])


def _slopes(trace: Trace, largest: Floats) -> Floats:
    """Return the derivative of the loss along each segment at its start, (n,), in [-largest, largest]."""
    gammas = np.concatenate([[0.0], trace.gammas, [1.0]])
    losses = np.column_stack([trace.loss, trace.read("loss_along"), trace.read("loss_next")])
    powers = np.arange(1, min(4, len(gammas) - 1) + 1)
    # Differences to f(x_t), so that the polynomial passes through it and large losses keep their small changes.
    weights = np.linalg.pinv(gammas[1:, None] ** powers)[0]
    slopes = (losses[:, 1:] - losses[:, :1]) @ weights
    return np.clip(slopes, -largest, largest)
