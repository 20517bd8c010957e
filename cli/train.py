"""`lsmooth train`: run one of the paper's training runs and record a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lsmooth.cli.numbers import LARGEST_COUNT, SEED, Count, Number
from lsmooth.cli.options import checked_device, default_device, pairs, plan_arguments, training_options
from lsmooth.cli.outputs import refusal

if TYPE_CHECKING:
    from lsmooth.tasks.plan import Plan
    from lsmooth.tasks.session import Session


@click.command("train", epilog="Example: lsmooth train transformer-encoder --steps 200 --every 5 --trace run.h5")
@click.argument("task", required=False)
@click.option("--optimizer", help="Name of the optimizer (see `lsmooth tasks`).  [default: the optimizer of the task]")
@click.option("--lr", type=Number(0), help="Learning rate.  [default: the learning rate of the optimizer in the task]")
@training_options
@click.option("--every", type=Count(), default=10, show_default=True, help="Measure every COUNT-th step.")
@click.option(
    "--coordinates",
    type=Count(0),
    default=4,
    show_default=True,
    help="Number of single coordinates to follow in each parameter tensor.",
)
@click.option("--densities", is_flag=True, help="Also count all coordinates by gradient and smoothness.")
@click.option(
    "--norm",
    "norms",
    multiple=True,
    type=click.Choice(["linf", "spectral"]),
    help="Measure in this norm, too: linf fits sign methods and Adam, spectral fits Muon.",
)
@click.option(
    "--layer-norm",
    "layer_norms",
    multiple=True,
    metavar="PATTERN=NORM",
    help="Measure layers whose name fits PATTERN in their own NORM (l2, linf, spectral); '*' fits the rest.",
)
@click.option(
    "--probe",
    type=Count(),
    help="Measure the mean loss of COUNT training examples (pairs, windows, images), the same ones all along, in place "
    "of each step's batch.",
)
@click.option(
    "--probe-size",
    type=Count(),
    help="With --probe: number of examples to evaluate at a time. Two probes or more also record the noise of the "
    "gradient. A loss that is a sum over tokens (transformer-translation) grows with it.  [default: the batch size]",
)
@click.option(
    "--blocks",
    metavar="COUNT|BY",
    help="Also move groups of layers one by one, with an evaluation each: COUNT groups, or one for each module, "
    "parameter, or first group of a regular expression.",
)
@click.option(
    "--blocks-every",
    type=Count(),
    help="With --blocks: move them at measured steps whose number is a multiple of COUNT.  [default: 1]",
)
@click.option("--critical", is_flag=True, help="Also search for the critical learning rate of each measured step.")
@click.option("--offload", is_flag=True, help="On a GPU, keep both ends of a measured step in the host's memory.")
@click.option("--full-precision", is_flag=True, help="Measure without mixed precision, whatever --amp says.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of weights, order of batches and dropout.")
@click.option("--trace", type=click.Path(), help="File of the trace.  [default: TASK.h5]")
@click.option("--force", is_flag=True, help="Replace an existing trace.")
@click.option("--resume", is_flag=True, help="Continue the run of --trace from its checkpoint.")
@click.option(
    "--checkpoint-every",
    type=Number(0, LARGEST_COUNT),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two checkpoints.",
)
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train TASK and measure its smoothness; `lsmooth tasks` lists the tasks.

    The command writes a trace, and a checkpoint beside it. Ctrl-C ends the run after the current step. The same
    --trace with --resume continues the run; the checkpoint then gives all other options.

    Under torchrun the processes share each batch. Each process takes one GPU where there are GPUs, and the first
    process writes the files. Resume such a run with the same number of processes.
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
    """Train over the processes that torchrun started; the first process prints for all."""
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
    return f"{session.trace}: all {session.run.step} steps are done; give a larger --steps or --epochs to continue."


def _begun(ctx: click.Context, options: dict[str, Any], parallel: bool = False) -> Session:
    if options["task"] is None:
        raise click.UsageError("Missing argument 'TASK' (see `lsmooth tasks`).", ctx)
    if options["probe_size"] is not None and options["probe"] is None:
        raise click.UsageError("--probe-size goes with --probe, the number of examples of all probes.", ctx)
    if options["blocks_every"] is not None and options["blocks"] is None:
        raise click.UsageError("--blocks-every goes with --blocks, which says what is moved.", ctx)
    from lsmooth import tasks
    from lsmooth.tasks.plan import make_plan
    from lsmooth.tasks.session import Session

    task = tasks.get(options["task"])
    trace = Path(options["trace"] or f"{task.name}.h5")
    # The check comes before data and model are made, which may take a while.
    _check_outputs(trace, options["force"], parallel)
    plan, data = make_plan(
        task.name,
        optimizer=options["optimizer"],
        seed=options["seed"],
        **plan_arguments(options),
    )
    return Session(
        plan,
        trace,
        _recording(options, plan),
        data=data,
        mode="w" if options["force"] else "x",
        checkpoint_seconds=options["checkpoint_every"],
        parallel=parallel,
    )


def _recording(options: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Return what is measured, as a `Session` takes it."""
    from lsmooth.errors import InvalidArgumentError

    own: dict[str, str] = {}
    for text in options["layer_norms"]:
        pattern, equals, norm = text.rpartition("=")
        if not equals or not pattern:
            raise InvalidArgumentError(f"--layer-norm {text} is not of the form PATTERN=NORM; write 'attn=spectral'.")
        own[pattern] = norm
    arguments = {name: options[name] for name in ("every", "coordinates", "densities", "critical", "offload")}
    arguments["autocast"] = not options["full_precision"]
    if options["probe"] is not None:
        arguments["probe"] = options["probe"]
        arguments["probe_size"] = options["probe_size"] or min(options["probe"], plan.settings["batch_size"])
    if options["blocks"] is not None:
        arguments["blocks"] = (_blocks(options["blocks"]), options["blocks_every"] or 1)
    return {**arguments, "norms": ["l2", *options["norms"], *([own] if own else [])]}


def _blocks(text: str) -> int | str:
    """Return a number of groups as such, and what groups parameters as it is."""
    return int(text) if text.isascii() and text.isdigit() else text


def _check_outputs(trace: Path, force: bool, parallel: bool) -> None:
    """Raise InvalidArgumentError if trace or checkpoint cannot be written; all processes follow the first one."""
    from lsmooth.errors import InvalidArgumentError
    from lsmooth.tasks.checkpoint import checkpoint_path
    from lsmooth.tasks.parallel import on_rank_0

    reason = refusal(trace, force, "choose another --trace, or --resume to continue it")
    # A checkpoint belongs to its trace, and is replaced with it.
    reason = reason or refusal(checkpoint_path(trace), force=True)
    if parallel:
        reason = on_rank_0(reason)
    if reason is not None:
        raise InvalidArgumentError(reason)


def _resumed(ctx: click.Context, options: dict[str, Any], parallel: bool = False) -> Session:
    if options["force"]:
        raise click.UsageError("--resume continues a trace and --force replaces it; give one of them.", ctx)
    if options["trace"] is None and options["task"] is None:
        raise click.UsageError("--resume needs --trace FILE, the trace to continue.", ctx)
    from lsmooth.errors import InvalidArgumentError
    from lsmooth.tasks.checkpoint import find_checkpoint, load_checkpoint
    from lsmooth.tasks.session import Session

    trace = Path(options["trace"] or f"{options['task']}.h5")
    checkpoint = load_checkpoint(find_checkpoint(trace))
    for option, given, there in _differences(ctx, options, checkpoint.plan, checkpoint.recording):
        raise InvalidArgumentError(
            f"{trace} was begun with {option} {there}, not {given}; leave out {option} to resume the run, or start "
            "another run with another --trace."
        )
    checked_device(options["device"])
    extend = {name: options[name] for name in ("steps", "epochs") if options[name] is not None}
    return Session.resume(
        trace,
        device=options["device"],
        extend=extend,
        checkpoint_seconds=options["checkpoint_every"],
        parallel=parallel,
    )


def _differences(ctx: click.Context, options: dict[str, Any], plan: Plan, recording: Any) -> list[tuple[str, Any, Any]]:
    """Return each option that contradicts the checkpoint: its name, its value, and the value of the run."""
    import os

    given = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    }
    data, norms = options["data"], recording.get("norms", ["l2"])
    blocks, blocks_every = recording.get("blocks", (None, None))
    own = {
        "task": ("TASK", plan.task),
        "optimizer": ("--optimizer", plan.optimizer),
        "lr": ("--lr", plan.hyperparameters.get("lr")),
        "every": ("--every", recording["every"]),
        "coordinates": ("--coordinates", recording["coordinates"]),
        "densities": ("--densities", recording.get("densities", False)),
        "critical": ("--critical", recording.get("critical", False)),
        "offload": ("--offload", recording.get("offload", False)),
        "probe": ("--probe", recording.get("probe")),
        "probe_size": ("--probe-size", recording.get("probe_size")),
        "blocks": ("--blocks", None if blocks is None else str(blocks)),
        "blocks_every": ("--blocks-every", blocks_every),
        "norms": ("--norm", tuple(norm for norm in norms if isinstance(norm, str) and norm != "l2")),
        "layer_norms": (
            "--layer-norm",
            tuple(f"{a}={b}" for norm in norms if isinstance(norm, dict) for a, b in norm.items()),
        ),
        "full_precision": ("--full-precision", not recording.get("autocast", True)),
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
            f"continue with: {command} train --resume --trace {session.trace}"
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
