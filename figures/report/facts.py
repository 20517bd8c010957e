"""The facts of a run that a page gives in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from lsmooth.advice import Advice, advise
from lsmooth.fit import estimate
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.layout import GEOMETRIES, Status
from lsmooth.trace.reader import Trace

# Intervals of more points than this take minutes, and evenly chosen steps give nearly the same ones.
_MOST_FITTED = 20_000

# Below this factor over the middle 90 % of gradient norms, smoothness is said to hardly grow.
_MUCH = 1.5

MEANINGS = {
    Status.MEASURED: "every number of the step is what its name says",
    Status.NO_DISPLACEMENT: "the step did not move the parameters",
    Status.BELOW_RESOLUTION: "the step is so short that rounding hides what it changes",
    Status.NON_FINITE: "a loss, gradient or estimate is NaN or infinite",
    Status.MOVED: "parameters changed between backward and step",
    Status.OTHER_GRADIENT: "the step used gradients that the recorder did not see",
    Status.NOT_REPEATED: "the loss could not be evaluated again as it was",
    Status.PARTIAL: "the optimizer also stepped parameters that the trace does not have",
    Status.NOISY: "rounding is a large part of the change of gradient that the estimate is made of",
}


@dataclass(frozen=True)
class RunFacts:
    """What the page says of one run.

    Attributes:
        name: Short name that tells the run from the others.
        verdict: The most important finding, in one sentence.
        run: Facts of the run: name and text.
        measured: How it was measured: name and text.
        flags: Name of a status flag, its meaning, and how many measured steps carry it.
        constants: What `lsmooth.estimate(trace, by="module")` returns.
        advice: What `lsmooth.advise` says.
        left_out: Name of an advice that cannot be given, and the reason.
    """

    name: str
    verdict: str
    run: list[tuple[str, str]]
    measured: list[tuple[str, str]]
    flags: list[tuple[str, str, int]]
    constants: pd.DataFrame
    advice: tuple[Advice, ...]
    left_out: dict[str, str]


def facts_of(trace: Trace, name: str) -> RunFacts:
    """Collect what the page says of a run.

    Raises:
        TraceError: The trace is damaged.
    """
    said = advise(trace)
    counts = trace.status_counts()
    return RunFacts(
        name=name,
        verdict=verdict(trace),
        run=_run(trace),
        measured=_measured(trace),
        flags=[
            (flag_name, meaning, counts[flag_name])
            for flag, meaning in MEANINGS.items()
            if (flag_name := str(flag.name).lower()) in counts
        ],
        constants=_estimates(trace, "module"),
        advice=said.advice,
        left_out=said.left_out,
    )


def verdict(trace: Trace) -> str:
    """Return one sentence: whether smoothness grows with the gradient norm, how much, and with which L0 and L1."""
    if not len(trace):
        return "No step has been measured yet."
    cloud = trace.cloud()
    row = _estimates(trace, "global", "trend").iloc[0]
    if not np.isfinite(row["L1"]):
        return f"No line can be fitted: {row['reason']}."
    low, high = np.percentile(cloud.grad_norm[cloud.usable], [5, 95])
    growth = (row["L0"] + row["L1"] * high) / (row["L0"] + row["L1"] * low)
    line = f"smoothness is about {row['L0']:.3g} + {row['L1']:.3g} ‖g‖, a factor of {growth:.3g} over the middle 90 %"
    points = f"of gradient norms ({int(row['points']):,} steps, rank correlation {row['spearman']:.2f}"
    low, high = row["L1_low"], row["L1_high"]
    if not np.isfinite(low):
        return f"By the trend, {line} {points}; there are too few steps to say how sure that is)."
    interval = f"90 % interval of L1: {low:.3g} to {high:.3g})"
    if low <= 0:
        return f"It is not shown that smoothness grows with the gradient norm: {line} {points}; {interval}."
    much = "grows" if growth >= _MUCH else "hardly grows"
    return f"Smoothness {much} with the gradient norm: {line} {points}; {interval}."


def _estimates(trace: Trace, by: str, *methods: str) -> pd.DataFrame:
    """Return what `lsmooth.estimate` finds for evenly chosen steps; for all steps, where there are few."""
    cloud = trace.cloud(by)
    stride = max(1, -(-len(cloud.steps) // _MOST_FITTED))
    return estimate(every_nth(cloud, stride), method=methods or ("trend", "envelope"))


def every_nth(cloud: Cloud, stride: int) -> Cloud:
    """Return the cloud of every `stride`-th measured step."""
    if stride == 1:
        return cloud
    per_step = {name: getattr(cloud, name) for name in ("steps", "smoothness", "grad_norm", "status", "loss", "lr")}
    if cloud.noise_share is not None:
        per_step["noise_share"] = cloud.noise_share
    return replace(cloud, **{name: values[::stride] for name, values in per_step.items()})


def _run(trace: Trace) -> list[tuple[str, str]]:
    metadata = trace.metadata
    rates = [group.get("lr") for group in metadata.get("optimizer_groups") or [] if isinstance(group, Mapping)]
    facts = [
        ("file", str(trace.path)),
        ("model", f"{metadata.get('model')}, {int(trace.parameter_sizes.sum()):,} parameters"),
        ("optimizer", f"{metadata.get('optimizer')}, lr {', '.join(map(_text, rates))} at the start"),
    ]
    if metadata.get("created"):
        facts.append(("created", str(metadata["created"])))
    if len(trace):
        facts += [
            ("loss", f"{trace.loss[0]:.4g} at step {trace.steps[0]}, {trace.loss[-1]:.4g} at step {trace.steps[-1]}"),
            ("time", f"{trace.time[-1]:.3g} s"),
        ]
    return facts + [(str(key), _text(value)) for key, value in (metadata.get("user_metadata") or {}).items()]


def _measured(trace: Trace) -> list[tuple[str, str]]:
    metadata = trace.metadata
    gammas = ", ".join(f"{gamma:.3g}" for gamma in trace.gammas)
    norms = [name for name, geometry in GEOMETRIES.items() if trace.has(geometry.dataset("grad_diff"))]
    return [
        ("smoothness", "largest ‖∇f(x + γd) − ∇f(x)‖ / ‖γd‖ over γ, d the optimizer's step, f the step's own loss"),
        ("γ", gammas + (" and the endpoint" if trace.has("loss_next") else "")),
        ("objective", _text(metadata.get("objective"))),
        ("every", _text(metadata.get("every"))),
        ("norms", ", ".join(norms)),
        ("steps measured", f"{len(trace):,}"),
        ("numbers", f"{metadata.get('dtype')} on {metadata.get('device')}"),
        ("software", f"lsmooth {metadata.get('lsmooth_version')}, torch {metadata.get('torch_version')}"),
        ("trace", f"format {metadata.get('format_version')}, {trace.state}"),
    ]


def _text(value: Any) -> str:
    """Return metadata as text: numbers short, dictionaries as their entries."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Mapping)):
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:g}"
