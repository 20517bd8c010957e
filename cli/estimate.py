"""`lsmooth estimate`: L0 and L1 of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lsmooth.trace.layout import NORMS

if TYPE_CHECKING:
    import pandas as pd

    from lsmooth.trace.reader import Displacement

# Where a table has less room for names, or they would be alike in it, they stand on lines of their own.
_SHORTEST_NAME = 16
# A note that concerns more groups than this names some of them.
_MOST_NAMES = 4
# What --compare has no use for.
_NOT_COMPARED = {"methods": "--method", "condition": "--condition", "confidence": "--confidence", "seed": "--seed"}


@click.command("estimate", epilog="Example: lsmooth estimate run.h5 --by module")
@click.argument("trace", type=click.Path())
@click.option(
    "--by",
    default="global",
    show_default=True,
    help="global, module, parameter, coordinate, density (all coordinates of each tensor), or a regular expression "
    "whose first group names the group.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=("trend", "envelope"),
    show_default=True,
    type=click.Choice(["trend", "quantile", "envelope"]),
    help="Which line; may be given several times.",
)
@click.option(
    "--condition",
    default="linear",
    show_default=True,
    type=click.Choice(["linear", "power", "suboptimality"]),
    help="Bound by L0 + L1 |g|, L0 + Lrho |g|^rho, or H0 + H1 (f - f_low).",
)
@click.option("--compare", "comparing", is_flag=True, help="Say instead which condition describes unseen steps best.")
@click.option(
    "--norm",
    default="l2",
    show_default=True,
    type=click.Choice(NORMS),
    help="Norm of displacements; gradients are measured in its dual. Others than l2 must have been recorded.",
)
@click.option(
    "--displacement",
    type=click.Choice(["layer", "global"]),
    default="layer",
    show_default=True,
    help="What a group's change of gradient is divided by: its own part of the step, or the whole step.",
)
@click.option("--endpoint", is_flag=True, help="With --by coordinate: gamma = 1 alone, as in Figure 3.")
@click.option(
    "--q",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the points below the line of `quantile`, and with --compare of all lines.",
)
@click.option(
    "--f-low", type=float, help="For suboptimality: a lower bound of the loss.  [default: the lowest measured]"
)
@click.option(
    "--confidence",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Of the intervals; 0 for none, which saves time.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the intervals' random numbers.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(
    context: click.Context,
    trace: str,
    by: str,
    methods: tuple[str, ...],
    condition: str,
    comparing: bool,
    norm: str,
    displacement: Displacement,
    endpoint: bool,
    q: float,
    f_low: float | None,
    confidence: float,
    seed: int,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Print L0 and L1 of TRACE: the line smoothness = L0 + L1 x gradient norm.

    The trend runs through the middle of the points, a quantile above a share of them, the envelope above all. Intervals
    stand in brackets; "below" is the share of points not above the line.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other.")

    def given(name: str) -> bool:
        return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    if endpoint and by != "coordinate":
        raise click.UsageError("--endpoint goes with --by coordinate.")
    if f_low is not None and not comparing and condition != "suboptimality":
        raise click.UsageError("--f-low goes with --condition suboptimality, or with --compare.")
    if not comparing and given("q") and "quantile" not in methods:
        raise click.UsageError("--q is the share of points below a quantile line; add --method quantile.")
    if comparing:
        for name, option in _NOT_COMPARED.items():
            if given(name):
                raise click.UsageError(
                    f"--compare holds quantile lines of all conditions together; leave out {option}."
                )
    from lsmooth.fit import compare, estimate, verdict
    from lsmooth.trace.reader import Trace

    settings: dict[str, Any] = {"norm": norm, "displacement": displacement, "endpoint": endpoint, "q": q}
    with Trace(trace) as opened:
        if comparing:
            frame = compare(opened, by, f_low=f_low, **settings)
            kind, lines = "comparison", _comparison
        else:
            settings |= {"condition": condition, "confidence": confidence or None, "seed": seed}
            frame = estimate(opened, by, method=methods, f_low=f_low, **settings)
            kind, lines = "estimates", _table
    if as_csv:
        click.echo(frame.to_csv(index=False), nl=False)
    elif as_json:
        import json

        # JSON has no NaN; what is missing is null.
        rows = [
            {name: None if value != value else value for name, value in row.items()}
            for row in frame.to_dict(orient="records")
        ]
        said: dict[str, Any] = {"trace": trace, "by": by, **settings, kind: rows}
        if comparing:
            said["verdicts"] = {group: verdict(frame, group) for group in frame["group"].unique()}
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        for line in lines(frame):
            click.echo(line)


def _comparison(frame: pd.DataFrame) -> list[str]:
    """Return a table of held-out losses relative to a constant, one line a group, and what follows from it."""
    import shutil
    import textwrap

    from lsmooth.fit import verdict

    width = shutil.get_terminal_size().columns
    table = frame[frame["pinball"].notna()]
    conditions = table["condition"].unique().tolist()
    room = max(width - sum(len(name) + 2 for name in conditions), _SHORTEST_NAME)
    longest = min(max([len("group"), *(len(group) for group in table["group"])]), room)
    lines = ["  ".join(["group".ljust(longest), *conditions])] if len(table) else []
    for group, rows in table.groupby("group", sort=False):
        shares = [f"{share:.0%}".rjust(len(name)) for name, share in zip(conditions, rows["relative"], strict=True)]
        lines.append("  ".join([_shortened(str(group), longest).ljust(longest), *shares]))
    if lines:
        lines.append("")
    for group in frame["group"].unique():
        lines += textwrap.wrap(verdict(frame, group), width, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _table(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a table no wider than the terminal, and below it what was left out and why."""
    import shutil
    import textwrap

    width = shutil.get_terminal_size().columns
    level, slope = (name.removesuffix("_low") for name in frame.columns if name.endswith("_low") and name != "f_low")
    rho = ["rho"] if "rho" in frame.columns else []
    heads = ["group", "method", level, slope, *rho, "rank corr", "below", "points"]
    cells = [
        [
            str(row["group"]),
            str(row["method"]),
            *(_with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in (level, slope)),
            *(f"{row[name]:.2f}" for name in rho),
            f"{row['spearman']:.2f}",
            f"{row['coverage']:.0%}",
            str(row["points"]),
        ]
        for row in frame[frame[level].notna()].to_dict("records")
    ]
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(heads))]
    shown = list(range(len(heads)))
    # What a narrow terminal can do without, in this order.
    last = len(heads) - 1
    for column in (last - 1, last, last - 2):
        if sum(widths[i] + 2 for i in shown[1:]) + min(widths[0], _SHORTEST_NAME) > width:
            shown.remove(column)
    room = width - sum(widths[i] + 2 for i in shown[1:])
    groups = {cell[0] for cell in cells}
    # Names that are alike once they are short would tell nothing.
    apart = room < min(widths[0], _SHORTEST_NAME) or len({_shortened(name, room) for name in groups}) < len(groups)
    widths[0] = min(widths[0], width if apart else room)
    lines = []
    previous = None
    for cell in [heads, *cells] if cells else []:
        name = "" if cell[0] == previous else _shortened(cell[0], widths[0])
        previous = cell[0]
        texts = [cell[1].ljust(widths[1])]
        texts += [cell[i].ljust(widths[i]) if i < 4 else cell[i].rjust(widths[i]) for i in shown[2:]]
        if apart and name:
            lines.append(name)
        lines.append("  ".join(["" if apart else name.ljust(widths[0]), *texts]).rstrip())
    # A group has one reason a method, and parts of it are the same for all of them.
    said = frame[["group", "reason"]].assign(reason=frame["reason"].str.split("; ")).explode("reason")
    for reason, rows in said[said["reason"] != ""].groupby("reason", sort=False):
        names = rows["group"].drop_duplicates().tolist()
        if len(names) > _MOST_NAMES:
            names = [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} more"]
        note = f"{', '.join(names)}: {reason}"
        lines += textwrap.wrap(note, width, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _with_interval(value: float, low: float, high: float) -> str:
    """Return a constant to three figures, with its interval where there is one."""
    return f"{value:.3g} [{low:.3g}, {high:.3g}]" if low == low else f"{value:.3g}"


def _shortened(name: str, width: int) -> str:
    """Return a name in at most `width` characters: abbreviated, or its middle left out where that is not enough."""
    from lsmooth.figures.abbreviations import abbreviations

    for short in abbreviations(name):
        if len(short) <= width:
            return short
    tail = (width - 1) * 2 // 3
    return f"{short[: width - 1 - tail]}…{short[len(short) - tail :]}"
