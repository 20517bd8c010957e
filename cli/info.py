"""`lsmooth info`: what is in a trace."""

from __future__ import annotations

import click


@click.command("info", epilog="Example: lsmooth info run.h5")
@click.argument("trace", type=click.Path())
def command(trace: str) -> None:
    """Say what is in TRACE: run, model, optimizer, steps measured and flagged, size."""
    from lsmooth.trace.reader import Trace

    with Trace(trace) as opened:
        click.echo(repr(opened))
