"""`lsmooth demo`: train a small Transformer, draw Figures 1 and 3, and print L0 and L1, in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lsmooth.cli.numbers import SEED, Count

if TYPE_CHECKING:
    from lsmooth.trace.reader import Trace

FILES = ("demo.h5", "figure1.png", "figure3.png")


@click.command("demo", epilog="Example: lsmooth demo -o demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    default=".",
    help="Folder for the three files.  [default: the current folder]",
)
@click.option("--steps", type=Count(2), default=270, show_default=True, help="Number of optimizer steps.")
@click.option("--every", type=Count(), default=3, show_default=True, help="Measure every COUNT-th step.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of weights, order of batches and dropout.")
@click.option("--force", is_flag=True, help="Replace the files of an earlier demo.")
@click.pass_context
def command(ctx: click.Context, /, output: str, steps: int, every: int, seed: int, force: bool) -> None:
    """Train the Transformer of the paper's Figure 1(a) on English text, and measure how smooth its loss is.

    The command prints L0 and L1 of each layer, and writes three files. demo.h5 is the trace. figure1.png shows
    smoothness against gradient norm. figure3.png shows the same for single coordinates.
    """
    from lsmooth.cli.outputs import check_output

    folder = Path(output)
    paths = [folder / name for name in FILES]
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        check_output(path, force, "choose another folder with -o")
    from lsmooth.cli.progress import Progress, plain_warnings
    from lsmooth.cli.threads import wait_without_spinning

    wait_without_spinning()
    from lsmooth.tasks.plan import make_plan
    from lsmooth.tasks.session import Session
    from lsmooth.tasks.text import Corpus
    from lsmooth.trace.reader import Trace

    plan, data = make_plan("transformer-encoder", changes={"steps": steps}, seed=seed)
    assert isinstance(data, Corpus)
    with (
        plain_warnings(),
        Session(plan, paths[0], {"every": every}, data=data, mode="w", checkpoint_seconds=None) as session,
    ):
        run = session.run
        size = sum(parameter.numel() for parameter in run.problem.model.parameters())
        baseline = run.problem.baseline()
        click.echo(
            f"A 2-layer Transformer encoder ({size:,} parameters) learns {data.origin}, {len(data.train):,} words: "
            f"{steps} steps, smoothness measured at one in {every}."
        )
        with Progress(session, reports=False) as progress:
            outcome = session.train(progress)
    if outcome == "stopped":
        click.echo(f"Stopped after step {run.step} of {steps}; {paths[0]} holds the steps measured so far.")
        ctx.exit(130)
    last = run.reports[-1]
    click.echo(
        f"Trained in {last.seconds:.0f} s: valid loss {last.metrics['loss']:.3f} "
        f"({baseline.name} {baseline.loss:.3f}), perplexity {last.metrics['perplexity']:.1f}."
    )
    with Trace(paths[0]) as trace:
        lines = layer_table(trace)
        _draw(trace, paths[1], paths[2])
        measured = len(trace)
    click.echo("\nHow smooth each layer is: local Lipschitz constant <= L0 + L1 * gradient norm\n")
    click.echo("\n".join(lines))
    click.echo(f"\nWrote {paths[0]}   the trace: {measured} measured steps; lsmooth info {paths[0]}")
    click.echo(f"Wrote {paths[1]}   smoothness against gradient norm, as in Figure 1 of the paper")
    click.echo(f"Wrote {paths[2]}   the same for single coordinates, as in Figure 3")


def layer_table(trace: Trace) -> list[str]:
    """Return the lines of a table of L0 and L1 of each layer: trend (through its points) and envelope (above them)."""
    from lsmooth.cli.table import Column, numbers, table
    from lsmooth.fit import estimate

    frame = estimate(trace, by="module", method=("trend", "envelope"))
    groups = frame["group"].unique()
    columns = [Column("layer", left=True)]
    cells = [list(groups)]
    for method, rows in frame.groupby("method", sort=False):
        for name in ("L0", "L1"):
            columns.append(Column(f"{method}\n{name}"))
            cells.append(numbers(rows[name]))
    points = frame.drop_duplicates("group")["points"]
    return table([*columns, Column("points")], list(zip(*cells, map(str, points), strict=True)))


def _draw(trace: Trace, figure1: Path, figure3: Path) -> None:
    from matplotlib.figure import Figure

    from lsmooth.figures import style
    from lsmooth.figures.kinds import Options, draw_kind

    with style():
        for kind, path in (("scatter", figure1), ("coordinates", figure3)):
            draw_kind(kind, [trace], Figure(layout="constrained"), Options()).savefig(path)
