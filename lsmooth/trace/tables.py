"""Tables of a trace for pandas and xarray."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lsmooth.errors import TraceError
from lsmooth.estimators import joined_norms, local_lipschitz
from lsmooth.trace import layout
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.clouds import check_norm
from lsmooth.trace.curvature import critical_rates
from lsmooth.trace.file import TraceFile
from lsmooth.trace.grouping import By, group_parameters
from lsmooth.trace.layout import GEOMETRIES, Status

if TYPE_CHECKING:
    import xarray


def frame(trace: TraceFile, rows: slice | None) -> pd.DataFrame:
    """Return one row a measured step; see `Trace.to_frame`."""
    columns: dict[str, Any] = {"step": trace.read("step", rows)}
    for field in layout.FIELDS:
        by_tensor = field.dims[1:] == ("parameter",)
        if field.column and not by_tensor and trace.has(field.name) and field.name not in ("step", "status"):
            values = trace.read(field.name, rows)
            if values.ndim == 1:
                columns[field.column] = values
            else:
                # One column for each parameter group, numbered if there are several.
                for group in range(values.shape[1]):
                    columns[field.column if values.shape[1] == 1 else f"{field.column}_{group}"] = values[:, group]
    if trace.has("critical_gamma"):
        columns |= critical_rates(trace, rows)
    changed = trace.read("total_grad_diff", rows)[:, :, None]
    smoothness = local_lipschitz(changed, columns["step_norm"][:, None], trace.gammas)[:, 0]
    columns["smoothness"] = smoothness
    columns["status"] = trace.read("status", rows)
    well = columns["status"] == Status.MEASURED
    columns["usable"] = well & np.isfinite(smoothness) & np.isfinite(columns["grad_norm"])
    return pd.DataFrame(columns)


def smoothness(trace: TraceFile, by: By, points: Cloud) -> pd.DataFrame:
    """Return the points of a cloud, with the columns by group that `FIELDS` names; see `Trace.smoothness`."""
    table = points.to_frame()
    if by == "coordinate":
        return table
    groups = list(group_parameters(trace.parameters, by).values())
    for field in layout.FIELDS:
        if field.column and field.dims[1:] == ("parameter",) and trace.has(field.name):
            norms = joined_norms(trace.read(field.name), groups, field.join)
            table[field.column] = norms.ravel()
            if field.share is not None:
                name, part = field.share
                with np.errstate(divide="ignore", invalid="ignore"):
                    table[name] = (joined_norms(trace.read(part), groups, field.join) / norms).ravel()
    return table


def gradient_norm(trace: TraceFile, by: By, norm: str) -> pd.DataFrame:
    """Return gradient norms by group; see `Trace.gradient_norm`."""
    check_norm(trace, norm)
    if by == "coordinate":
        groups = tuple(trace.coordinate_names)
        values = np.abs(trace.read("coordinate/grad").astype(np.float64))
    else:
        members = group_parameters(trace.parameters, by)
        groups = tuple(members)
        geometry = GEOMETRIES[norm]
        if by == "global" and norm == "l2":
            values = trace.read("total_grad_norm")[:, None]
        else:
            values = joined_norms(
                trace.read(geometry.dataset("grad_norm")), list(members.values()), geometry.gradient_join
            )
    return pd.DataFrame(
        {
            "step": np.repeat(trace.steps, len(groups)),
            "group": pd.Categorical.from_codes(np.tile(np.arange(len(groups)), len(trace)), categories=list(groups)),
            "grad_norm": values.ravel(),
        }
    )


def dataset(trace: TraceFile) -> xarray.Dataset:
    """Return a trace as an `xarray.Dataset`; see `Trace.to_xarray`."""
    try:
        import xarray
    except ImportError:
        raise TraceError("xarray is not installed; pip install 'lsmooth[xarray]'.") from None
    coordinates: dict[str, Any] = {
        "step": trace.steps,
        "gamma": trace.gammas,
        "parameter": trace.parameters,
        "group": np.arange(trace.read("lr", slice(0, 0)).shape[1]),
        "parameter_size": ("parameter", trace.parameter_sizes),
    }
    if trace.coordinate_names:
        coordinates["coordinate"] = trace.coordinate_names
    variables = {
        field.key: (field.dims, trace.read(field.name), {"long_name": field.description, "units": field.units})
        for field in layout.FIELDS
        if trace.has(field.name) and field.name != "step"
    }
    plain = {
        name: value if isinstance(value, (str, int, float)) else json.dumps(value)
        for name, value in trace.metadata.items()
    }
    return xarray.Dataset(variables, coordinates, plain)
