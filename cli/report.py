"""`lsmooth report`: write one page about a run."""

from __future__ import annotations

import click

from lsmooth.cli.outputs import check_output


@click.command("report", epilog="Example: lsmooth report run.h5 -o run.html")
@click.argument("traces", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", type=click.Path(), required=True, help="File of the page, such as run.html.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(traces: tuple[str, ...], output: str, force: bool) -> None:
    """Write one interactive page about TRACES: verdict, figures, L0 and L1, advice, and how it was measured.

    The page is one file, which opens in any browser without a network. Hovering over a point shows its step, loss and
    learning rate; a click on a layer shows its cloud. The extra `report` is needed: pip install 'lsmooth[report]'.
    """
    from contextlib import ExitStack
    from pathlib import Path

    from lsmooth.errors import InvalidArgumentError

    path = Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InvalidArgumentError(f"{output} is no page; end it in .html.")
    check_output(path, force)
    from lsmooth.figures.report import report_page
    from lsmooth.trace.reader import Trace

    with ExitStack() as stack:
        page = report_page([stack.enter_context(Trace(trace)) for trace in traces])
    path.write_text(page, encoding="utf-8")
    click.echo(f"Wrote {path} ({len(page.encode()) / 1e6:.1f} MB).")
