"""`lsmooth info`: print what a trace holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lsmooth.cli.table import duration, listed

if TYPE_CHECKING:
    from lsmooth.trace.reader import Trace


@click.command("info", epilog="Example: lsmooth info run.h5")
@click.argument("trace", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def command(trace: str, as_json: bool) -> None:
    """Print what TRACE holds: run, model, optimizer, measured and flagged steps, size.

    The command reads a trace that is being written, too, and a trace whose run was killed.
    """
    import json

    from lsmooth.trace.attributes import printable
    from lsmooth.trace.reader import Trace

    with Trace(trace) as opened:
        facts = _facts(opened)
    if as_json:
        click.echo(json.dumps(_finite(facts), indent=2))
        return
    state = f"{facts['state']}, {_bytes(facts['bytes'])}"
    click.echo(f"{printable(trace)}: lsmooth trace {facts['format_version']}, {state}")
    for line in listed(_lines(facts)):
        click.echo(line)


def _facts(trace: Trace) -> dict[str, Any]:
    import numpy as np

    from lsmooth.trace.layout import GEOMETRIES

    metadata = trace.metadata
    cloud = trace.cloud()
    good = cloud.usable[:, 0]
    summary: dict[str, Any] = {}
    for name, values in (("smoothness", cloud.smoothness[:, 0]), ("grad_norm", cloud.grad_norm[:, 0])):
        chosen = values[good]
        summary[name] = (
            dict(zip(("min", "median", "max"), np.percentile(chosen, [0, 50, 100]).tolist(), strict=True))
            if len(chosen)
            else None
        )
    return {
        "path": str(trace.path),
        "state": trace.state,
        "bytes": trace.path.stat().st_size,
        "format_version": metadata.get("format_version"),
        "lsmooth_version": metadata.get("lsmooth_version"),
        "torch_version": metadata.get("torch_version"),
        "created": metadata.get("created"),
        "model": metadata.get("model"),
        "parameter_tensors": len(trace.parameters),
        "parameters": int(trace.parameter_sizes.sum()),
        "dtype": metadata.get("dtype"),
        "device": metadata.get("device"),
        "optimizer": metadata.get("optimizer"),
        "optimizer_groups": metadata.get("optimizer_groups"),
        "objective": metadata.get("objective"),
        "probes": metadata.get("probes"),
        "probe_size": metadata.get("probe_size"),
        "every": metadata.get("every"),
        "seed": metadata.get("seed"),
        "gammas": trace.gammas.tolist(),
        "endpoint": trace.has("loss_next"),
        "coordinates": len(trace.coordinate_names),
        "norms": [norm for norm, geometry in GEOMETRIES.items() if trace.has(geometry.dataset("grad_diff"))],
        "densities": trace.has_densities,
        "critical": trace.has("critical_gamma"),
        "measured_steps": len(trace),
        "first_step": int(trace.steps[0]) if len(trace) else None,
        "last_step": int(trace.steps[-1]) if len(trace) else None,
        "status": trace.status_counts(),
        "first_loss": float(trace.loss[0]) if len(trace) else None,
        "last_loss": float(trace.loss[-1]) if len(trace) else None,
        "seconds": float(trace.time[-1]) if len(trace) else None,
        **summary,
        "user_metadata": metadata.get("user_metadata"),
    }


def _finite(value: Any) -> Any:
    """Return facts with None in place of NaN and infinity, which JSON does not have."""
    import math

    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    from lsmooth.trace.attributes import printable

    groups = facts["optimizer_groups"] or []
    rates = ", ".join(f"{group['lr']:g}" for group in groups if isinstance(group.get("lr"), (int, float)))
    gammas = ", ".join(f"{gamma:.3g}" for gamma in facts["gammas"])
    lines = [
        (
            "model",
            f"{facts['model']}: {facts['parameter_tensors']} tensors, {facts['parameters']:,} parameters, "
            f"{facts['dtype']} on {facts['device']}",
        ),
        ("optimizer", f"{facts['optimizer']}, lr {rates} at the start"),
        ("objective", str(facts["objective"])),
        ("points", f"gamma = {gammas}{' and the endpoint' if facts['endpoint'] else ''}"),
        (
            "followed",
            f"{facts['coordinates']} coordinates{' and densities of all' if facts['densities'] else ''}, "
            f"norms {', '.join(facts['norms'])}{', critical learning rates' if facts['critical'] else ''}",
        ),
        ("written", f"{facts['created']} by lsmooth {facts['lsmooth_version']}, torch {facts['torch_version']}"),
    ]
    if not facts["measured_steps"]:
        return [*lines, ("steps", "none measured yet")]
    well = facts["status"].get("measured", 0)
    flagged = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in facts["status"].items() if name != "measured"
    )
    every = "" if facts["every"] == "callable" else f", every {facts['every']}"
    lines.append(
        (
            "steps",
            f"{facts['measured_steps']} measured ({facts['first_step']} to {facts['last_step']}{every}), {well} well"
            + (f"; left out of fits: {flagged}" if flagged else ""),
        )
    )
    lines.append(
        (
            "loss",
            f"{facts['first_loss']:.4g} at first, {facts['last_loss']:.4g} at last, {duration(facts['seconds'])} later",
        )
    )
    for name, label in (("smoothness", "smoothness"), ("grad_norm", "grad norm")):
        if facts[name]:
            spread = facts[name]
            lines.append((label, f"median {spread['median']:.4g}, from {spread['min']:.4g} to {spread['max']:.4g}"))
    for name, value in (facts["user_metadata"] or {}).items():
        told = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
        # The trace keeps the newlines of these texts, which could forge lines here.
        lines.append((printable(name), printable(told)))
    return lines


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
