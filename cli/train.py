"""`lsmooth train`: one of the paper's training runs, with a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lsmooth.tasks.plan import Plan
    from lsmooth.tasks.session import Session


@click.command("train", epilog="Example: lsmooth train transformer-encoder --steps 200 --every 5 --trace run.h5")
@click.argument("task", required=False)
@click.option("--optimizer", help="Name of the optimizer; the task's own by default (see `lsmooth tasks`).")
@click.option("--lr", type=float, help="Learning rate; the task's own for the optimizer by default.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training data.")
@click.option("--steps", type=click.IntRange(1), help="Stop after so many optimizer steps.")
@click.option("--every", type=click.IntRange(1), default=10, show_default=True, help="Measure every so many steps.")
@click.option(
    "--coordinates", type=click.IntRange(0), default=4, show_default=True, help="Followed in each parameter tensor."
)
@click.option("--densities", is_flag=True, help="Also count all coordinates by gradient and smoothness.")
@click.option("--seed", type=int, default=0, show_default=True, help="For weights, order of batches, dropout.")
@click.option("--data", metavar="DIR|hub", help="Folder with the data set's files, or hub; by default a stand-in.")
@click.option("--preset", type=click.Choice(["paper", "small"]), help="Default: paper on real data, else small.")
@click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Change a hyperparameter; may be repeated.")
@click.option("--device", help="Such as cpu, cuda, cuda:1.  [default: cuda where there is one]")
@click.option("--amp", type=click.Choice(["bf16"]), help="Mixed precision.")
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile the model with torch.compile; the first steps wait for it."
)
@click.option("--trace", type=click.Path(), help="Where the trace goes.  [default: TASK.h5]")
@click.option("--force", is_flag=True, help="Replace an existing trace.")
@click.option("--resume", is_flag=True, help="Go on with the run of --trace from its checkpoint.")
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How often a checkpoint is written beside the trace.",
)
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train TASK and measure its smoothness; `lsmooth tasks` lists the tasks.

    Writes a trace and, beside it, a checkpoint. Ctrl-C ends the run after the step that it is in; --resume with the
    same --trace continues it, all other options are then taken from the checkpoint.

    Under torchrun, the processes share each batch, with one GPU each where there are GPUs; the first of them writes.
    Such a run is resumed with as many processes.
    """
    from lsmooth.cli.progress import Progress, plain_warnings
    from lsmooth.cli.threads import wait_without_spinning

    wait_without_spinning()
    from lsmooth.tasks.parallel import ranks_wanted

    if ranks_wanted() > 1:
        _train_together(ctx, options)
        return
    with plain_warnings():
        session = _resumed(ctx, options) if options["resume"] else _begun(ctx, options)
        with session:
            if session.run.done:
                click.echo(_nothing_left(session))
                return
            click.echo(_opening(session), err=True)
            with Progress(session) as progress:
                outcome = session.train(progress)
    click.echo(_closing(session, outcome))
    if outcome == "stopped":
        ctx.exit(130)
    if outcome == "diverged":
        ctx.exit(1)


def _train_together(ctx: click.Context, options: dict[str, Any]) -> None:
    """Train over the processes that torchrun started; the first of them speaks."""
    import torch.distributed as dist

    from lsmooth.cli.progress import Progress, plain_warnings
    from lsmooth.tasks.parallel import join, leave

    options["device"] = join(options["device"] or default_device())
    first = not dist.get_rank()
    try:
        with plain_warnings():
            make = _resumed if options["resume"] else _begun
            with make(ctx, options, parallel=True) as session:
                if session.run.done:
                    if first:
                        click.echo(_nothing_left(session))
                    return
                if first:
                    click.echo(f"{_opening(session)}, {dist.get_world_size()} processes", err=True)
                    with Progress(session) as progress:
                        outcome = session.train(progress)
                else:
                    outcome = session.train()
                session.close()
                if first:
                    click.echo(_closing(session, outcome))
    finally:
        leave()
    if outcome == "stopped":
        ctx.exit(130)
    if outcome == "diverged":
        ctx.exit(1)


def _nothing_left(session: Session) -> str:
    return f"{session.trace}: all {session.run.step} steps were made already; give --steps or --epochs for more."


def _begun(ctx: click.Context, options: dict[str, Any], parallel: bool = False) -> Session:
    if options["task"] is None:
        raise click.UsageError("Missing argument 'TASK' (see `lsmooth tasks`).", ctx)
    from lsmooth import tasks
    from lsmooth.errors import TraceError
    from lsmooth.tasks.parallel import on_rank_0
    from lsmooth.tasks.plan import make_plan
    from lsmooth.tasks.session import Session

    task = tasks.get(options["task"])
    trace = Path(options["trace"] or f"{task.name}.h5")
    # Said before data and model are made, which may take a while.
    if (on_rank_0(trace.exists()) if parallel else trace.exists()) and not options["force"]:
        raise TraceError(f"{trace} exists already; choose another --trace, or --force to replace it, or --resume it.")
    plan, data = make_plan(
        task.name,
        optimizer=options["optimizer"],
        data=options["data"],
        preset=options["preset"],
        changes=changes_of(options),
        seed=options["seed"],
        device=options["device"] or default_device(),
        amp=options["amp"] is not None,
        compile=options["compiled"],
    )
    return Session(
        plan,
        trace,
        {name: options[name] for name in ("every", "coordinates", "densities")},
        data=data,
        mode="w" if options["force"] else "x",
        checkpoint_seconds=options["checkpoint_every"],
        parallel=parallel,
    )


def _resumed(ctx: click.Context, options: dict[str, Any], parallel: bool = False) -> Session:
    if options["force"]:
        raise click.UsageError("--resume goes on with a trace and --force replaces it; give one of them.", ctx)
    if options["trace"] is None and options["task"] is None:
        raise click.UsageError("--resume needs --trace FILE, the trace to continue.", ctx)
    from lsmooth.errors import InvalidArgumentError
    from lsmooth.tasks.checkpoint import checkpoint_path, load_checkpoint
    from lsmooth.tasks.plan import check_device
    from lsmooth.tasks.session import Session

    trace = Path(options["trace"] or f"{options['task']}.h5")
    checkpoint = load_checkpoint(checkpoint_path(trace))
    for option, given, there in _differences(ctx, options, checkpoint.plan, checkpoint.recording):
        raise InvalidArgumentError(
            f"{trace} was begun with {option} {there}, not {given}; leave {option} out to resume it, or start another "
            "run with another --trace."
        )
    if options["device"] is not None:
        check_device(options["device"])
    extend = {name: options[name] for name in ("steps", "epochs") if options[name] is not None}
    return Session.resume(
        trace,
        device=options["device"],
        extend=extend,
        checkpoint_seconds=options["checkpoint_every"],
        parallel=parallel,
    )


def _differences(ctx: click.Context, options: dict[str, Any], plan: Plan, recording: Any) -> list[tuple[str, Any, Any]]:
    """Return the options given in contradiction to the run's own: option, given value, the run's value."""
    import os

    given = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    }
    data = options["data"]
    own = {
        "task": ("TASK", plan.task),
        "optimizer": ("--optimizer", plan.optimizer),
        "lr": ("--lr", plan.hyperparameters.get("lr")),
        "every": ("--every", recording["every"]),
        "coordinates": ("--coordinates", recording["coordinates"]),
        "densities": ("--densities", recording.get("densities", False)),
        "seed": ("--seed", plan.seed),
        "preset": ("--preset", plan.preset),
        "amp": ("--amp", "bf16" if plan.amp else None),
        "compiled": ("--compile", plan.compile),
        "data": ("--data", plan.data),
    }
    if data is not None and os.path.isdir(data):
        given["data"] = os.path.abspath(data)
    found = [(*own[name], value) for name, value in given.items() if name in own and value != own[name][1]]
    changed = plan.with_hyperparameters(pairs(options["changes"]))
    for key in pairs(options["changes"]) if changed != plan else ():
        name = key.removeprefix("optimizer.")
        before = {**plan.hyperparameters, **plan.settings}.get(name)
        after = {**changed.hyperparameters, **changed.settings}.get(name)
        if before != after:
            found.append((f"--set {key}", before, after))
    return [(option, value, there) for option, there, value in found]


def changes_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the options change of the preset, last of all --set."""
    changes: dict[str, Any] = {
        key: options[name]
        for name, key in (("lr", "optimizer.lr"), ("steps", "steps"), ("epochs", "epochs"))
        if options.get(name) is not None
    }
    if options["epochs"] is not None and options["steps"] is None:
        # A preset may end after some steps; who asks for epochs wants those.
        changes["steps"] = None
    return changes | pairs(options["changes"])


def pairs(texts: Sequence[str], option: str = "--set") -> dict[str, str]:
    """Return texts of the form KEY=VALUE as a mapping."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.", param_hint=option)
        # Hyperparameters have underscores; a name before a colon is an optimizer's.
        owner, colon, name = key.strip().rpartition(":")
        found[owner + colon + name.replace("-", "_")] = value.strip()
    return found


def default_device() -> str:
    """Return the device to train on where none is named."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _opening(session: Session) -> str:
    plan, run = session.plan, session.run
    size = sum(parameter.numel() for parameter in run.problem.model.parameters())
    lr = plan.hyperparameters.get("lr", run.lr)
    start = f", from step {run.step}" if run.step else ""
    return (
        f"{plan.task} ({plan.preset}) on {plan.device}: {size:,} parameters, {run.total_steps} steps{start}, "
        f"{plan.optimizer} lr {lr:g}, seed {plan.seed}"
    )


def _closing(session: Session, outcome: str) -> str:
    run = session.run
    measured = _measured(session.trace)
    if outcome == "stopped":
        command = "lsmooth" if run.parallel is None else f"torchrun --nproc-per-node {run.parallel.size} -m lsmooth.cli"
        return (
            f"Stopped after step {run.step} of {run.total_steps}; "
            f"go on with: {command} train --resume --trace {session.trace}"
        )
    last = run.reports[-1]
    lines = []
    if outcome == "diverged":
        lines.append(
            f"Diverged: the training loss became {last.train_loss} before step {last.step}; try a smaller --lr."
        )
    else:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in last.metrics.items())
        baseline = run.problem.baseline()
        lines.append(
            f"Trained {run.step} steps in {last.seconds:.0f} s: train loss {last.train_loss:.4g} "
            f"({baseline.name} {baseline.loss:.4g}), valid {metrics}."
        )
    max_norm = session.plan.settings["max_norm"]
    if max_norm is not None:
        clipped, steps = (sum(getattr(report, name) for report in run.reports) for name in ("clipped", "steps"))
        lines.append(f"Clipped the gradient to norm {max_norm:g} in {clipped} of {steps} steps.")
    lines.append(f"Wrote {session.trace} ({measured}) and {session.checkpoint_path}.")
    lines.append(f"Look at it: lsmooth info {session.trace}; lsmooth plot {session.trace} -o figure.png")
    return "\n".join(lines)


def _measured(path: Path) -> str:
    from lsmooth.trace.layout import Status
    from lsmooth.trace.reader import Trace

    with Trace(path) as trace:
        flagged = int((trace.status != Status.MEASURED).sum())
        left_out = f", {flagged} of them flagged" if flagged else ""
        return f"{len(trace)} measured steps{left_out}"
