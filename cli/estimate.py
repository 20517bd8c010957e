"""`lsmooth estimate`: L0 and L1 of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from lsmooth.cli.numbers import SEED, Count, Number
from lsmooth.fit.conditions import CONDITIONS
from lsmooth.fit.lines import LEAST_SHARE
from lsmooth.fit.methods import METHODS
from lsmooth.trace.layout import NORMS

if TYPE_CHECKING:
    import pandas as pd

# A note that concerns more groups than this names only the first ones.
_MOST_NAMES = 4
# Options that do not go with --compare.
_NOT_COMPARED = {
    "methods": "--method",
    "condition": "--condition",
    "q": "--q",
    "tau": "--tau",
    "confidence": "--confidence",
    "seed": "--seed",
}
# Options that go with --blocks.
_OF_BLOCKS = ("of_blocks", "as_csv", "as_json")
# Options that do not go with --noise.
_NOT_OF_NOISE = {
    "comparing": "--compare",
    "methods": "--method",
    "condition": "--condition",
    "displacement": "--displacement",
    "endpoint": "--endpoint",
    "q": "--q",
    "tau": "--tau",
    "f_low": "--f-low",
    "seed": "--seed",
}


@click.command("estimate", epilog="Example: lsmooth estimate run.h5 --by module")
@click.argument("trace", type=click.Path())
@click.option(
    "--by",
    default="global",
    show_default=True,
    help="Groups of parameters: global, module, parameter, coordinate, density (all coordinates of each tensor), or a "
    "regular expression whose first group names the group.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=("trend", "envelope"),
    show_default=True,
    type=click.Choice(list(METHODS)),
    help="Kind of line; may be repeated.",
)
@click.option(
    "--condition",
    default="linear",
    show_default=True,
    type=click.Choice(list(CONDITIONS)),
    help="Bound on the smoothness: L0 + L1 |g|, L0 + Lrho |g|^rho, or H0 + H1 (f - f_low).",
)
@click.option(
    "--compare",
    "comparing",
    is_flag=True,
    help="Print which condition describes unseen steps best, instead of L0 and L1.",
)
@click.option(
    "--noise",
    "of_noise",
    is_flag=True,
    help="Print how the probes' noise grows with the gradient, sigma^2 = s0^2 + s1^2 |g|^2, and the noise scale.",
)
@click.option(
    "--probe-size",
    type=Count(),
    help="With --noise: number of examples in a probe.  [default: what the recorder was told]",
)
@click.option(
    "--blocks",
    "of_blocks",
    is_flag=True,
    help="Print where the curvature sits: each block of layers moved by itself, and with the others.",
)
@click.option(
    "--norm",
    default="l2",
    show_default=True,
    type=click.Choice(NORMS),
    help="Norm of displacements; gradients have its dual norm. Any norm but l2 must have been recorded.",
)
@click.option(
    "--displacement",
    type=click.Choice(["layer", "global"]),
    default="layer",
    show_default=True,
    help="Divide the change of a group's gradient by the group's part of the step, or by the whole step.",
)
@click.option("--endpoint", is_flag=True, help="With --by coordinate: take gamma = 1 alone, as in Figure 3.")
@click.option(
    "--q",
    default=0.95,
    show_default=True,
    type=Number(LEAST_SHARE, 1 - LEAST_SHARE),
    help="Share of the points below the quantile line.",
)
@click.option(
    "--tau",
    default=0.9,
    show_default=True,
    type=Number(LEAST_SHARE, 1 - LEAST_SHARE),
    help="Weight of the points above the line of method expectile.",
)
@click.option(
    "--f-low", type=Number(), help="Lower bound of the loss, for suboptimality.  [default: the lowest measured loss]"
)
@click.option(
    "--confidence",
    default=0.9,
    show_default=True,
    type=Number(0, 1, max_open=True),
    help="Confidence of the intervals; 0 leaves them out, which saves time.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the random numbers that intervals need.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, /, trace: str, as_csv: bool, as_json: bool, **options: Any) -> None:
    """Print L0 and L1 of TRACE: the line smoothness = L0 + L1 x gradient norm.

    With --noise, the command prints the noise of the gradient. It needs a run with two probes or more. With --blocks,
    it prints medians of what `Trace.blocks` has. It needs a run that moved blocks.

    The trend runs through the middle of the points, a quantile line above a share of them, the envelope above all of
    them. Intervals stand in brackets. "rank corr" is the rank correlation of smoothness and gradient norm. "below" is
    the share of points that are not above the line.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other.")
    from lsmooth.cli.spreadsheet import to_csv

    _check(ctx, options)
    settings, frame = _fit(trace, options)
    if as_csv:
        click.echo(to_csv(frame), nl=False)
    elif as_json:
        about = {"trace": trace} if options["of_blocks"] else {"trace": trace, "by": options["by"], **settings}
        click.echo(_json(about, frame, options["comparing"]))
    else:
        show = next((function for name, function in _SHOWN.items() if options[name]), _estimates)
        for line in show(frame):
            click.echo(line)


def _check(ctx: click.Context, options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that goes only with another one, or not with another one."""

    def given(name: str) -> bool:
        return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    comparing = options["comparing"]
    if options["of_blocks"]:
        for parameter in ctx.command.params:
            if parameter.name not in ("trace", *_OF_BLOCKS) and given(str(parameter.name)):
                raise click.UsageError(f"--blocks prints what was measured; leave out {parameter.opts[0]}.")
    if options["of_noise"]:
        for name, option in _NOT_OF_NOISE.items():
            if given(name):
                raise click.UsageError(f"--noise fits the noise of the probes by a trend; leave out {option}.")
    elif options["probe_size"] is not None:
        raise click.UsageError("--probe-size goes with --noise.")
    if options["endpoint"] and options["by"] != "coordinate":
        raise click.UsageError("--endpoint goes with --by coordinate.")
    if options["f_low"] is not None and not comparing and options["condition"] != "suboptimality":
        raise click.UsageError("--f-low goes with --condition suboptimality, or with --compare.")
    if not comparing and given("q") and "quantile" not in options["methods"]:
        raise click.UsageError("--q is the share of points below a quantile line; add --method quantile.")
    if not comparing and given("tau") and "expectile" not in options["methods"]:
        raise click.UsageError("--tau is the weight of points above an expectile line; add --method expectile.")
    for name, option in _NOT_COMPARED.items() if comparing else ():
        if given(name):
            raise click.UsageError(
                f"--compare holds trends of all conditions against unseen steps; leave out {option}."
            )


def _fit(path: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the settings of the fits, and their results, one row a line."""
    from lsmooth.fit import compare, estimate, estimate_noise
    from lsmooth.trace.reader import Trace

    if options["of_blocks"]:
        with Trace(path) as trace:
            return {}, _medians(trace.blocks())
    if options["of_noise"]:
        settings = {"norm": options["norm"], "probe_size": options["probe_size"]}
        settings["confidence"] = options["confidence"] or None
        with Trace(path) as trace:
            return settings, estimate_noise(trace, options["by"], **settings)
    settings = {name: options[name] for name in ("norm", "displacement", "endpoint")}
    with Trace(path) as trace:
        if options["comparing"]:
            return settings, compare(trace, options["by"], f_low=options["f_low"], **settings)
        settings |= {
            "q": options["q"],
            "tau": options["tau"],
            "condition": options["condition"],
            "confidence": options["confidence"] or None,
            "seed": options["seed"],
        }
        return settings, estimate(trace, options["by"], method=options["methods"], f_low=options["f_low"], **settings)


def _json(about: dict[str, Any], frame: pd.DataFrame, comparing: bool) -> str:
    """Return settings and results as one JSON object, with null for NaN, which JSON does not have."""
    import json

    from lsmooth.fit import verdict

    rows = [
        {name: None if value != value else value for name, value in row.items()}
        for row in frame.to_dict(orient="records")
    ]
    about["comparison" if comparing else "estimates"] = rows
    if comparing:
        about["verdicts"] = {group: verdict(frame, group) for group in frame["group"].unique()}
    return json.dumps(about, indent=2)


def _medians(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the medians of block quantities over usable steps, one row per block, and the number of steps."""
    usable = frame[frame["usable"]]
    known = usable.drop(columns=["step", "usable"]).groupby("group", observed=False)
    table = known.median().assign(points=known.size())
    table["left_out"] = frame.groupby("group", observed=False).size() - table["points"]
    return table.reset_index().astype({"group": str})


def _blocks(frame: pd.DataFrame) -> list[str]:
    """Return a table of medians by block."""
    from lsmooth.cli.table import Column, numbers, table

    shown = [name for name in ("own", "others", "own_smoothness", "smoothness") if name in frame.columns]
    columns = [
        Column("group", left=True),
        *(Column(name.replace("_", " ")) for name in shown),
        Column("points", dispensable=True),
    ]
    cells = [frame["group"], *(numbers(frame[name]) for name in shown), frame["points"].astype(str)]
    return table(columns, list(zip(*cells, strict=True)))


def _noise(frame: pd.DataFrame) -> list[str]:
    """Return a table of the noise of each group, and below it the reasons of what is missing."""
    from lsmooth.cli.table import Column, numbers, table

    columns = [
        Column("group", left=True),
        *(Column(name, left=True) for name in ("s0", "s1", "noise scale")),
        Column("sigma", dispensable=True),
        Column("points", dispensable=True),
    ]
    cells = [
        frame["group"].astype(str),
        *(_with_intervals(frame, name, 2) for name in ("s0", "s1", "noise_scale")),
        numbers(frame["sigma"]),
        frame["points"].astype(str),
    ]
    return [*table(columns, list(zip(*cells, strict=True))), *_reasons(frame)]


def _comparison(frame: pd.DataFrame) -> list[str]:
    """Return a table of held-out losses relative to a constant, one line a group, and the verdicts."""
    from lsmooth.cli.table import Column, table, wrapped
    from lsmooth.fit import verdict

    known = frame[frame["log_error"].notna()]
    lines = []
    if len(known):
        columns = [Column("group", left=True), *(Column(name) for name in known["condition"].unique())]
        rows = [
            [str(group), *(f"{share:.0%}" for share in rows["relative"])]
            for group, rows in known.groupby("group", sort=False)
        ]
        lines = [*table(columns, rows), ""]
    for group in frame["group"].unique():
        lines += wrapped(verdict(frame, group))
    return lines


def _estimates(frame: pd.DataFrame) -> list[str]:
    """Return a table of the lines that were fitted, and below it the reasons of all that was left out."""
    from lsmooth.cli.table import Column, numbers, table, terminal_width

    level, slope = (name.removesuffix("_low") for name in frame.columns if name.endswith("_low") and name != "f_low")
    rho = ["rho"] if "rho" in frame.columns else []
    columns = [
        Column("group", left=True),
        Column("method", left=True),
        *(Column(name, left=True) for name in (level, slope)),
        *(Column(name) for name in rho),
        *(Column(name, dispensable=True) for name in ("rank corr", "below", "points")),
    ]
    fitted = frame[frame[level].notna()]
    lines: list[str] = []
    # A terminal without room for intervals to three figures gets two.
    for figures in (3, 2) if len(fitted) else ():
        cells = [
            fitted["group"].astype(str),
            fitted["method"].astype(str),
            *(_with_intervals(fitted, name, figures) for name in (level, slope)),
            *(numbers(fitted[name]) for name in rho),
            [f"{value:.2f}" for value in fitted["spearman"]],
            [f"{value:.0%}" for value in fitted["coverage"]],
            fitted["points"].astype(str),
        ]
        lines = table(columns, list(zip(*cells, strict=True)))
        if max(map(len, lines)) <= terminal_width():
            break
    return lines + _reasons(frame)


def _reasons(frame: pd.DataFrame) -> list[str]:
    """Return the reasons of all that was left out, with the groups that share each."""
    from lsmooth.cli.table import wrapped

    lines: list[str] = []
    # Each method of a group has its reason; the methods share parts of it.
    said = frame[["group", "reason"]].assign(reason=frame["reason"].str.split("; ")).explode("reason")
    for reason, rows in said[said["reason"] != ""].groupby("reason", sort=False):
        names = rows["group"].drop_duplicates().tolist()
        if len(names) > _MOST_NAMES:
            names = [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} more"]
        lines += wrapped(f"{', '.join(names)}: {reason}")
    return lines


def _with_intervals(frame: pd.DataFrame, name: str, figures: int) -> list[str]:
    """Return a constant of each row to three figures, with its interval, if any, to `figures` figures."""
    from lsmooth.cli.table import numbers

    values = numbers(frame[name])
    known = frame[f"{name}_low"].notna()
    ends = zip(*(frame.loc[known, f"{name}_{end}"] for end in ("low", "high")), strict=True)
    intervals = (f" [{low:.{figures}g}, {high:.{figures}g}]" for low, high in ends)
    return [value + (next(intervals) if has else "") for value, has in zip(values, known, strict=True)]


# The functions that print where an option asks for something other than estimates.
_SHOWN = {"of_noise": _noise, "of_blocks": _blocks, "comparing": _comparison}
