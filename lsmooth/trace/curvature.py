"""Computes curvature along the steps of a trace: edge ratio, directional smoothness, critical learning rate."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.estimators import joined_norms
from lsmooth.join import Join
from lsmooth.trace.clouds import check_norm
from lsmooth.trace.file import TraceFile
from lsmooth.trace.grouping import By, group_parameters
from lsmooth.trace.layout import GEOMETRIES, NOISE_SHARE, Status
from lsmooth.trace.rounding import noise_shares

# The loss-based form is trusted while rounding of the losses is below this share of f(x_{t+1}) - f(x_t) - ⟨g, d⟩.
_TRUSTED = 0.1


def curvature(trace: TraceFile, by: By, norm: str) -> pd.DataFrame:
    """Return curvature along the steps of a trace; see `Trace.curvature`."""
    check_norm(trace, norm)
    if by == "coordinate":
        raise InvalidArgumentError(
            "by='coordinate' is not defined for curvature along the step; use global, module or parameter."
        )
    if not trace.has("curvature/slope"):
        raise TraceError(
            f"{trace.path} was recorded before curvature was measured (format {trace.format_version}); record again."
        )
    members = group_parameters(trace.parameters, by)
    groups = list(members.values())
    geometry = GEOMETRIES[norm]
    moved = joined_norms(trace.read(geometry.dataset("step_norm")), groups, geometry.displacement_join)
    steepest = joined_norms(trace.read(geometry.dataset("grad_norm")), groups, geometry.gradient_join) * moved
    slope = _summed(trace, "curvature/slope", groups)
    change = _summed(trace, "curvature/change", groups)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        columns = {"steepness": -slope / steepest}
        along = [change[:, i] / (gamma * moved**2) for i, gamma in enumerate(trace.gammas)]
        if trace.has("curvature/change_next"):
            end = _summed(trace, "curvature/change_next", groups)
            columns["edge_ratio"] = end / -slope
            along.append(end / moved**2)
        columns["directional"] = np.max(along, axis=0)
        for gamma, values in zip(trace.gammas, along, strict=False):
            columns[f"directional_{gamma:.3g}"] = values
        if by == "global" and trace.has("loss_next"):
            columns |= _by_losses(trace, moved)
    n, m = slope.shape
    usable = (trace.status == Status.MEASURED)[:, None] & np.isfinite(columns["directional"])
    shares = noise_shares(trace, by)
    if shares is not None:
        usable &= ~(shares > NOISE_SHARE)
    return pd.DataFrame(
        {
            "step": np.repeat(trace.steps, m),
            "group": pd.Categorical.from_codes(np.tile(np.arange(m), n), categories=list(members)),
            **{name: values.ravel() for name, values in columns.items()},
            "usable": usable.ravel(),
        }
    )


def edge_ratios(trace: TraceFile, rows: slice | None = None) -> NDArray[np.float64]:
    """Return ⟨Delta(1), d⟩ / -⟨g, d⟩ over all tensors, (n,); NaN if the trace lacks it.

    Args:
        trace: The trace.
        rows: The measured steps to read; all by default.
    """
    if not trace.has("curvature/change_next"):
        return np.full(len(trace.read("step", rows)), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: NDArray[np.float64] = trace.read("curvature/change_next", rows).astype(np.float64).sum(axis=1)
        return ratios / -trace.read("slope", rows)


def critical_rates(trace: TraceFile, rows: slice | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the critical learning rate of each parameter group, lr times `critical_gamma`, as columns, (n,) each.

    The column is called `critical_lr` with a single group, and else `critical_lr_0`, `critical_lr_1`, ….
    """
    lr, gamma = trace.read("lr", rows), trace.read("critical_gamma", rows)
    with np.errstate(invalid="ignore"):
        rates = lr * gamma[:, None]
    count = lr.shape[1]
    return {"critical_lr" if count == 1 else f"critical_lr_{group}": rates[:, group] for group in range(count)}


def critical(trace: TraceFile) -> pd.DataFrame:
    """Return the critical learning rates of a trace; see `Trace.critical_lr`."""
    if not trace.has("critical_gamma"):
        raise TraceError(f"{trace.path} holds no critical learning rate; record with critical=True.")
    gamma = trace.read("critical_gamma")
    usable = (trace.status == Status.MEASURED) & ~np.isnan(gamma)
    return pd.DataFrame({"step": trace.steps, "critical_gamma": gamma, **critical_rates(trace), "usable": usable})


def blocks(trace: TraceFile) -> pd.DataFrame:
    """Return the curvature of blocks of layers in a trace; see `Trace.blocks`."""
    if not trace.has("blocks/change"):
        raise TraceError(f"{trace.path} holds no blocks of layers; record with blocks=8, or train with --blocks 8.")
    owners = trace.metadata.get("blocks")
    if not isinstance(owners, list) or len(owners) != len(trace.parameters):
        raise TraceError(f"{trace.path} does not say which tensors its blocks have; record again.")
    members: dict[str, list[int]] = {}
    for position, owner in enumerate(owners):
        if owner:
            members.setdefault(str(owner), []).append(position)
    groups = list(members.values())
    own = _summed(trace, "blocks/change", groups)
    moved = joined_norms(trace.read("step_norm"), groups, Join.NORM)
    there = ~np.isnan(own).all(axis=1)
    columns = {"own": own}
    with np.errstate(divide="ignore", invalid="ignore"):
        if trace.has("curvature/change_next"):
            columns["others"] = _summed(trace, "curvature/change_next", groups) - own
        columns["own_smoothness"] = joined_norms(trace.read("blocks/grad_diff"), groups, Join.NORM) / moved
        if trace.has("grad_diff_next"):
            columns["smoothness"] = joined_norms(trace.read("grad_diff_next"), groups, Join.NORM) / moved
    usable = (trace.status == Status.MEASURED)[:, None] & np.isfinite(own) & np.isfinite(columns["own_smoothness"])
    codes = np.tile(np.arange(len(groups)), int(there.sum()))
    return pd.DataFrame(
        {
            "step": np.repeat(trace.steps[there], len(groups)),
            "group": pd.Categorical.from_codes(codes, categories=list(members)),
            **{name: values[there].ravel() for name, values in columns.items()},
            "usable": usable[there].ravel(),
        }
    )


def _summed(trace: TraceFile, name: str, groups: list[list[int]]) -> NDArray[np.float64]:
    values = trace.read(name).astype(np.float64)
    return np.stack([values[..., group].sum(axis=-1) for group in groups], axis=-1)


def _by_losses(trace: TraceFile, moved: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return 2 (f(x_{t+1}) - f(x_t) - ⟨g, d⟩) / ‖d‖², and whether it is above the rounding of the losses."""
    loss, after = trace.loss[:, None], trace.read("loss_next")[:, None]
    above = after - loss - trace.read("slope")[:, None]
    # Each loss is rounded at least once in the run's dtype.
    eps = float(np.finfo(trace.read("grad_norm", slice(0, 0)).dtype).eps)
    trusted = eps * (np.abs(loss) + np.abs(after)) <= _TRUSTED * np.abs(above)
    return {"loss_based": 2 * above / moved**2, "loss_based_trusted": trusted}
