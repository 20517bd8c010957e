"""Continues an earlier trace: checks that it is of the same run, and finds the rows that the new file begins with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import TraceError
from lsmooth.trace import layout
from lsmooth.trace.attributes import probe_count
from lsmooth.trace.density import Counts
from lsmooth.trace.file import TraceFile
from lsmooth.trace.growing import Rows
from lsmooth.trace.header import Header
from lsmooth.trace.layout import CHUNK_STEPS, Field
from lsmooth.trace.recent import dtype_of

# Bytes of rows that are copied at a time.
_COPY_BYTES = 1 << 26


@dataclass(frozen=True)
class Kept:
    """What a continued trace keeps of the earlier one.

    Attributes:
        rows: Number of rows.
        seconds: `time` of the last row; 0 without rows.
        next_step: Optimizer step with which the run goes on.
        density: Counts of all coordinates; None if they are not counted.
    """

    rows: int
    seconds: float
    next_step: int
    density: Counts | None


def kept_of_same_run(place: Path, path: Path, header: Header) -> Kept:
    """Return what a continued run keeps of the trace at a path.

    Args:
        place: The path, with links resolved.
        path: The path as the user gave it, for errors.
        header: The header of the run that goes on.

    Raises:
        TraceError: The trace is damaged, or belongs to another model, other points or another set of datasets.
    """
    with TraceFile(place) as old:
        differences = _differences(old, header)
        if differences:
            raise TraceError(
                f"{path} cannot be continued by this run: {'; '.join(differences)}. "
                "Choose another file, or mode='w' to replace it."
            )
        return Kept(
            rows=len(old),
            seconds=float(old.time[-1]) if len(old) else 0.0,
            next_step=old.next_step,
            density=old.density_counts() if header.densities else None,
        )


def rows_before(place: Path, path: Path, step: int, rows: int | None) -> tuple[int, float]:
    """Return the number of rows of a trace before an optimizer step, and `time` of the last of them.

    Args:
        place: The path, with links resolved.
        path: The path as the user gave it, for errors.
        step: The optimizer step.
        rows: The expected number of rows; None if unknown.

    Raises:
        TraceError: The trace does not hold that many rows.
    """
    with TraceFile(place) as old:
        kept = int(np.searchsorted(old.steps, step))
        seconds = float(old.time[kept - 1]) if kept else 0.0
    if rows is not None and kept != rows:
        raise TraceError(
            f"{path} holds {kept} measured steps before step {step}, and the checkpoint knows of {rows}: "
            "they do not belong together; continue the trace that the checkpoint was made with."
        )
    return kept, seconds


def first_rows(old: TraceFile, header: Header, count: int) -> Iterator[Rows]:
    """Yield the first rows of a trace in blocks, with all fields of the new file.

    Fields that the old trace's format did not have yet are NaN.

    Args:
        old: The trace.
        header: The header of the new file.
        count: Number of rows.
    """
    fields, sizes = header.fields(), header.sizes()
    at_once = max(1, _COPY_BYTES // max(1, header.record().itemsize) // CHUNK_STEPS) * CHUNK_STEPS
    for start in range(0, count, at_once):
        part = slice(start, min(start + at_once, count))
        yield {
            item.name: old.read(item.name, part)
            if old.has(item.name)
            else _unknown(item, (part.stop - start, *(sizes[name] for name in item.dims[1:])), header.real)
            for item in fields
        }


def _unknown(item: Field, shape: tuple[int, ...], real: str) -> NDArray[Any]:
    return np.full(shape, np.nan, dtype_of(item, real))


def _differences(old: TraceFile, header: Header) -> list[str]:
    """Return the differences between a trace and the one that a run would write; empty for the same run."""
    found: list[str] = []
    if old.parameters != list(header.parameters):
        found.append(_first_difference("parameter tensors", old.parameters, list(header.parameters)))
    elif old.parameter_sizes.tolist() != list(header.parameter_sizes):
        position = next(i for i, size in enumerate(header.parameter_sizes) if size != old.parameter_sizes[i])
        found.append(
            f"{header.parameters[position]} has {old.parameter_sizes[position]} elements there and "
            f"{header.parameter_sizes[position]} here"
        )
    if old.gammas.tolist() != list(header.gammas):
        found.append(f"its gammas are {_numbers(old.gammas)}, this run's are {_numbers(header.gammas)}")
    # Fields that the old trace's format did not have yet are no difference.
    ours = [item.name for item in header.fields() if item.belongs_to(old.format_version) or old.has(item.name)]
    theirs = [item.name for item in layout.FIELDS if old.has(item.name)]
    if ours != theirs:
        found.append(f"only one of the two has {', '.join(sorted(set(ours) ^ set(theirs)))}")
    elif old.coordinate_names != list(header.coordinate_names):
        found.append("it follows other coordinates (another seed?)")
    if _function(old.metadata) != _function(header.attributes):
        found.append(f"it measures {_function(old.metadata)}, this run measures {_function(header.attributes)}")
    # As for its datasets, what the old trace's format did not have yet is no difference.
    if old.has("layers/grad_diff") and old.metadata.get("layer_norms") != header.attributes.get("layer_norms"):
        found.append("its layers have other norms")
    if old.has("blocks/change") and old.metadata.get("blocks") != header.attributes.get("blocks"):
        found.append("its blocks of layers are others")
    # Older traces without this attribute were evaluated with autocast as in training.
    if old.metadata.get("autocast", 1) != header.attributes.get("autocast", 1):
        found.append("only one of the two is evaluated without autocast")
    if old.has_densities != header.densities:
        found.append("only one of the two keeps densities")
    if old.read("grad_norm", slice(0, 0)).dtype != np.dtype(header.real):
        found.append(f"its norms are not {header.real}, as this model's are")
    if old.read("lr", slice(0, 0)).shape[1] != header.groups:
        found.append("its optimizer has another number of parameter groups")
    return found


def _function(metadata: Mapping[str, Any]) -> str:
    """Return in words of which loss a trace is."""
    count = probe_count(metadata)
    return f"the mean loss of {count} probes" if count else "each step's own loss"


def _first_difference(what: str, theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return f"it has {len(theirs)} {what}, this run has {len(ours)}"
    position = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"it has {theirs[position]} where this run has {ours[position]}"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
