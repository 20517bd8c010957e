"""`lsmooth advise`: print what a trace means for learning rate, clipping and momentum."""

from __future__ import annotations

import click

from lsmooth.cli.numbers import Number


@click.command("advise", epilog="Example: lsmooth advise run.h5")
@click.argument("trace", type=click.Path())
@click.option(
    "--beta2",
    default=0.0,
    show_default=True,
    type=Number(0, 1, max_open=True),
    help="beta2 of generalized SignSGD, for Theorem 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def command(trace: str, beta2: float, as_json: bool) -> None:
    """Print what TRACE means for learning rate, clipping and momentum.

    Each advice has its formula and its source. Where the trace lacks the data for an advice, the reason stands at the
    end.
    """
    import json
    import math
    import shutil
    import textwrap
    from dataclasses import asdict

    from lsmooth.advice import advise
    from lsmooth.trace.reader import Trace

    with Trace(trace) as opened:
        report = advise(opened, beta2=beta2)
    if as_json:
        advice = [asdict(item) for item in report.advice]
        for entry in advice:
            # JSON has no infinity.
            entry["values"] = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in entry["values"].items()
            }
        click.echo(json.dumps({"path": trace, "advice": advice, "left_out": report.left_out}, indent=2))
        return
    width = max(40, min(100, shutil.get_terminal_size().columns))
    for item in report.advice:
        for text, indent in ((item.text, ""), (item.formula, "    "), (f"[{item.source}]", "    ")):
            click.echo(textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent))
        click.echo()
    for name, reason in report.left_out.items():
        click.echo(textwrap.fill(f"Nothing about {name}: {reason}", width, subsequent_indent="    "))
