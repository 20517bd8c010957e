"""HTML tables that show a trace or a recorder in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from lsmooth.trace.layout import Status

if TYPE_CHECKING:
    from lsmooth.trace.reader import Trace


def summary_html(trace: Trace) -> str:
    """Return a summary of a trace as an HTML table, with all text escaped.

    Raises:
        TraceError: The trace is damaged.
    """
    return table_html("lsmooth trace", str(trace.path), _facts(trace))


def table_html(kind: str, path: str, facts: Sequence[tuple[str, str]]) -> str:
    """Return named facts as an HTML table, with all text escaped.

    Args:
        kind: Kind of the object, for the caption.
        path: File of the object, for the caption.
        facts: Name and text of each fact.
    """
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in facts
    )
    return f"<table><caption><b>{escape(kind)}</b> {escape(path)}</caption><tbody>{rows}</tbody></table>"


def _facts(trace: Trace) -> list[tuple[str, str]]:
    metadata = trace.metadata
    size = int(trace.parameter_sizes.sum())
    facts = [
        ("state", trace.state),
        ("model", f"{metadata.get('model')}: {len(trace.parameters)} parameter tensors, {size:,} parameters"),
        ("optimizer", str(metadata.get("optimizer"))),
    ]
    if not len(trace):
        return [*facts, ("steps", "none measured yet")]
    flagged = ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in trace.status_counts().items()
        if name != str(Status.MEASURED.name).lower()
    )
    well = int((trace.status == Status.MEASURED).sum())
    facts += [
        ("steps", f"{len(trace):,} measured, {trace.steps[0]:,} to {trace.steps[-1]:,}; {well:,} of them well"),
        ("flagged", flagged or "none"),
        ("loss", f"{trace.loss[0]:.4g} at first, {trace.loss[-1]:.4g} at last"),
    ]
    cloud = trace.cloud()
    for name, values in (("smoothness", cloud.smoothness), ("gradient norm", cloud.grad_norm)):
        known = values[cloud.usable]
        if len(known):
            low, middle, high = np.percentile(known, [0, 50, 100])
            facts.append((name, f"median {middle:.4g}, from {low:.4g} to {high:.4g}"))
    return facts
