"""`lsmooth compare`: optimizers on a task, over seeds, as in the paper's Table 1 and Figures 2, 4 and 5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lsmooth.cli.numbers import SEED, Count
from lsmooth.cli.options import pairs, plan_arguments, training_options

if TYPE_CHECKING:
    import pandas as pd

    from lsmooth.tasks.comparison import Comparison, Standing
    from lsmooth.tasks.engines import Engine
    from lsmooth.tasks.plan import Plan


@click.command(
    "compare",
    epilog="Example: lsmooth compare resnet20 --optimizers generalized-signsgd,adam --seeds 3 --grid lr=x0.3,x1,x3",
)
@click.argument("task")
@click.option("--optimizers", help="Names with commas between them.  [default: the optimizer of the task]")
@click.option("--seeds", type=Count(1, 10**6), default=5, show_default=True, help="Number of runs of each optimizer.")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="First seed, and the seed that settings are chosen with."
)
@click.option(
    "--grid",
    metavar="KEY=V,V,…",
    multiple=True,
    help="Values to choose from on held-out data. x0.3 means 0.3 times the default of the task. OPTIMIZER:KEY=… is for "
    "one optimizer.",
)
@click.option("--clip", metavar="V,V,…", help="Clipping thresholds to compare, such as 0.25,none.")
@training_options
@click.option("--jobs", type=Count(1, 1024), help="Number of runs at a time.  [default: one per core; on a GPU, one]")
@click.option("--threads", type=Count(1, 1024), default=1, show_default=True, help="Number of threads of each run.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Make the runs on this machine, or on a Ray cluster.",
)
@click.option("-o", "--output", type=click.Path(), help="File of the results.  [default: compare-TASK.h5]")
@click.option("--resume", is_flag=True, help="Continue with the file of results; it keeps the runs that it holds.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Compare optimizers on TASK over several seeds.

    Each optimizer chooses its settings on held-out data, trains on all data with several seeds, and is tested. The
    command prints a table with the mean over seeds and its 95 % interval, and the same of the difference of the test
    metric from the first optimizer's, seed by seed. It draws training curves, and keeps every run in one HDF5 file.

    `lsmooth compare lower-bound` compares gradient descent with its lower bound on two functions, and with generalized
    SignSGD. It takes --output (a CSV file) and --force alone.
    """
    if options["task"] == "lower-bound":
        _compare_lower_bound(ctx, options)
        return
    if options["resume"] and options["force"]:
        raise click.UsageError("--resume continues a file and --force replaces it; give one of them.", ctx)
    from lsmooth.cli.outputs import check_output
    from lsmooth.tasks.comparison import Comparison, contestants
    from lsmooth.tasks.results import Results

    output = Path(options["output"] or f"compare-{options['task']}.h5")
    figure = _figure_of(output)
    for path in (output, figure):
        check_output(path, options["force"] or options["resume"], "choose another -o, or --resume to continue it")
    plans = _plans(options)
    entries = contestants(plans, _grid(options["grid"]), _thresholds(options["clip"]))
    seeds = range(options["seed"], options["seed"] + options["seeds"])
    engine = _engine(options, next(iter(plans.values())).device)
    mode = "a" if options["resume"] else "w" if options["force"] else "x"
    with Results(output, {"task": options["task"]}, mode) as results:
        comparison = Comparison(entries, list(seeds), results)
        try:
            _make(comparison, comparison.search_jobs(), engine, "choosing settings")
            _make(comparison, comparison.final_jobs(), engine, "training")
        except KeyboardInterrupt:
            made = len(list(results))
            click.echo(
                f"Stopped; {output} holds {made} run{'s' * (made != 1)}: the same command with --resume continues."
            )
            ctx.exit(130)
        standings = comparison.standings()
        for line in report(standings, comparison):
            click.echo(line)
        wrote = f"Wrote {output} (every run)"
        if any(standing.score for standing in standings):
            _draw(comparison, figure)
            wrote += f" and {figure} (training curves)"
        click.echo(f"\n{wrote}.")
    if any(standing.failed for standing in standings):
        ctx.exit(1)


def _figure_of(output: Path) -> Path:
    """Return the path of the figure, which stands beside the results."""
    from lsmooth.errors import InvalidArgumentError

    figure = output.with_suffix(".png")
    if figure == output:
        raise InvalidArgumentError(f"{output} is the name of the figure; give the results another suffix.")
    return figure


def _compare_lower_bound(ctx: click.Context, options: Mapping[str, Any]) -> None:
    from lsmooth.cli.lower_bound import compare_lower_bound

    for name in options:
        given = ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT
        if given and name not in ("task", "output", "force"):
            raise click.UsageError("`lsmooth compare lower-bound` takes --output and --force alone.", ctx)
    compare_lower_bound(options["output"], options["force"])


def _plans(options: Mapping[str, Any]) -> dict[str, Plan]:
    """Return the plan of each optimizer, with its defaults in the task."""
    from lsmooth import tasks
    from lsmooth.errors import DataError, InvalidArgumentError
    from lsmooth.tasks.plan import make_plan

    names = (options["optimizers"] or tasks.get(options["task"]).optimizer).split(",")
    plans, arguments = {}, plan_arguments(options)
    for name in names:
        plans[name.strip()], data = make_plan(options["task"], optimizer=name.strip(), **arguments)
        if not data.has_test:
            raise DataError(f"{data.origin} has no test split, on which runs are compared; put it beside the others.")
    if len(plans) < len(names):
        raise InvalidArgumentError(f"--optimizers {options['optimizers']} names an optimizer twice; name each once.")
    return plans


def _grid(texts: Sequence[str]) -> dict[str, list[str]]:
    return {key: [part.strip() for part in value.split(",")] for key, value in pairs(texts, "--grid").items()}


def _thresholds(text: str | None) -> list[float | None] | None:
    if text is None:
        return None
    from lsmooth.tasks.task import read_value

    values: list[float | None] = [read_value("--clip", part.strip(), float | None) for part in text.split(",")]
    return values


def _engine(options: Mapping[str, Any], device: str) -> Engine:
    from lsmooth.tasks.engines import LocalEngine, RayEngine, available_cores

    on_gpu = device != "cpu"
    if options["engine"] == "ray":
        return RayEngine(options["threads"], 1.0 if on_gpu else 0.0)
    return LocalEngine(
        options["jobs"] or (1 if on_gpu else max(1, available_cores() // options["threads"])), options["threads"]
    )


def _make(comparison: Comparison, jobs: Mapping[str, Plan], engine: Engine, label: str) -> None:
    """Make the runs that the results do not hold, and show their progress."""
    from lsmooth.cli.progress import ProgressOfRuns

    missing = comparison.missing(jobs)
    if missing:
        with ProgressOfRuns(missing, label, comparison.metric) as progress:
            comparison.make(jobs, engine, progress.tick, progress.finished)


def report(standings: Sequence[Standing], comparison: Comparison) -> list[str]:
    """Return the lines of a table like the paper's Table 1: mean over seeds and half its 95 % interval."""
    from lsmooth.cli.table import Column, intervals, table
    from lsmooth.tasks.comparison import differences, mean_and_interval

    frame = comparison.curves()
    against = Column("minus\nthe first", dispensable=True)
    cells = {
        Column("optimizer", left=True): [standing.label for standing in standings],
        Column("settings", left=True): [
            standing.chosen or ("-" if standing.chosen is None else "") for standing in standings
        ],
        Column("train loss"): intervals(mean_and_interval(_last_losses(standing, frame)) for standing in standings),
        Column(f"test {comparison.metric}"): intervals(
            mean_and_interval(list(standing.score.values())) for standing in standings
        ),
        against: intervals(mean_and_interval(differences(standing, standings[0])) for standing in standings),
        Column("clipped"): [_clipped(standing, frame) for standing in standings],
        Column("seeds"): [str(len(standing.score)) for standing in standings],
    }
    needed = {
        "settings": any(cells[Column("settings", left=True)]),
        against.head: len(standings) > 1,
        "clipped": any(s.clips for s in standings),
    }
    shown = [column for column in cells if needed.get(column.head, True)]
    lines = table(shown, list(zip(*(cells[column] for column in shown), strict=True)))
    return lines + [note for standing in standings for note in _notes(standing)]


def _last_losses(standing: Standing, frame: pd.DataFrame) -> list[float]:
    """Return the last training loss of each run that did not diverge; `frame` has the curves of all contestants."""
    if not len(frame):
        return []
    good = frame[(frame["optimizer"] == standing.label) & frame["seed"].isin(list(standing.score))]
    losses: list[float] = good.groupby("seed")["train_loss"].last().tolist()
    return losses


def _clipped(standing: Standing, frame: pd.DataFrame) -> str:
    """Return the share of clipped steps of a contestant's runs; "-" where the training loop clips none."""
    mine = frame[frame["optimizer"] == standing.label] if len(frame) else frame
    return f"{mine['clipped'].sum() / mine['steps'].sum():.0%}" if standing.clips and len(mine) else "-"


def _notes(standing: Standing) -> Iterator[str]:
    """Yield one sentence for each thing that went wrong with a contestant."""
    if standing.chosen is None:
        yield f"{standing.label}: no settings of the grid trained without diverging or failing"
    if standing.diverged:
        yield f"{standing.label}: diverged with seed {', '.join(map(str, standing.diverged))}"
    for what, why in standing.failed.items():
        yield f"{standing.label}, {what}: failed ({why})"


def _draw(comparison: Comparison, path: Path) -> None:
    """Draw training loss and test metric over the epochs, one line an optimizer."""
    from matplotlib.figure import Figure

    from lsmooth.figures import style, training_curves

    frame = comparison.curves()
    with style():
        figure = Figure(figsize=(6.75, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        # Seeds may differ in where an epoch ends, and so in which share of it a step is. Of one or two epochs, an axis
        # in epochs has hardly a tick.
        by_epoch = (frame["epoch"] % 1 == 0).all() and frame["epoch"].max() > 3
        x = "epoch" if by_epoch else "step"
        training_curves(frame, x=x, y="train_loss", ax=left)
        # Perplexities of the first steps are orders of magnitude above the later ones.
        training_curves(frame, x=x, y=comparison.metric, ax=right, legend=False, log=comparison.metric == "perplexity")
        left.set_ylabel("training loss")
        right.set_ylabel(f"test {comparison.metric}")
        figure.savefig(path)
