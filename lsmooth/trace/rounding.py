"""Computes from a trace's datasets how much of a change of gradient is rounding, by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lsmooth.estimators import joined_norms, rounding_lines, rounding_noise
from lsmooth.trace.file import TraceFile
from lsmooth.trace.grouping import By, columns_of, group_parameters


def tells_rounding(trace: TraceFile) -> bool:
    """Say whether a trace has a bound of rounding, and enough points to estimate it."""
    return trace.has("rounding_bound") and bool(np.isfinite(rounding_lines(trace.gammas)).all())


def noise_shares(trace: TraceFile, by: By) -> NDArray[np.float64] | None:
    """Return the 2-norm of the rounding in the change of gradient of each estimate, as a share of that change.

    A coordinate has the share of its tensor.

    Args:
        trace: The trace.
        by: How parameters are grouped.

    Returns:
        Shares, float64 (n, m), NaN where unknown; None if the trace does not tell.
    """
    if not tells_rounding(trace):
        return None
    if by == "coordinate":
        tensors = noise_shares(trace, "parameter")
        return None if tensors is None else tensors[:, trace.coordinate_owners]
    groups = list(group_parameters(trace.parameters, by).values())
    if by == "global":
        changed, norm = trace.read("total_grad_diff")[:, :, None], trace.read("total_grad_norm")[:, None]
        return shares_of(trace, groups, slice(None), changed, norm)
    columns, positions = columns_of(groups)
    shares = np.empty((len(trace), len(groups)))
    for rows in trace.runs_of_rows(len(trace.gammas) * (columns.stop - columns.start)):
        changed = joined_norms(trace.read("grad_diff", rows, columns), positions)
        own = joined_norms(trace.read("grad_norm", rows, columns), positions)
        shares[rows] = shares_of(trace, groups, rows, changed, own)
    return shares


def shares_of(
    trace: TraceFile,
    groups: Sequence[Sequence[int]],
    rows: slice,
    changed: NDArray[np.float64],
    own: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return `noise_shares` for some rows.

    The rounding of a group's gradient is bounded by a share of a norm. This is the group's own norm, or the norm of the
    whole gradient times the square root of the group's share of all parameters, whichever is larger: a gradient that is
    zero in exact arithmetic has rounding errors too.

    Args:
        trace: The trace.
        groups: Positions of the parameters of each of m groups.
        rows: The n rows.
        changed: ‖Delta(gamma)‖2 of the groups at g positions, (n, g, m).
        own: ‖g‖2 of the groups, (n, m).
    """
    sizes = trace.parameter_sizes.astype(np.float64)
    parts = np.sqrt([sizes[list(group)].sum() / sizes.sum() for group in groups])
    bound, whole = trace.read("rounding_bound", rows)[:, None], trace.read("total_grad_norm", rows)[:, None]
    gammas = trace.gammas
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        noise = rounding_noise(changed, gammas, bound * np.maximum(own, parts * whole))
        best = np.argmax(changed / gammas[:, None], axis=1)[:, None]
        shares: NDArray[np.float64] = noise / np.take_along_axis(changed, best, axis=1)[:, 0]
        return shares
