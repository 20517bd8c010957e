"""Checkpoints of a training run: written whole or not at all, checked before anything in them is used.

A checkpoint is what `torch.save` writes, followed by a mark and the SHA-256 of all bytes before the mark. It is read by
weights only, so that nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch
from torch import Tensor

from lsmooth import optim, tasks
from lsmooth.errors import LsmoothError
from lsmooth.tasks.averaging import AveragingState
from lsmooth.tasks.plan import Plan, hint_like
from lsmooth.tasks.structure import StructureError, check_hint, check_like
from lsmooth.tasks.task import Data
from lsmooth.tasks.training import Report

FORMAT = "lsmooth-checkpoint"
# Version 1 had neither a checksum nor the name of its run.
VERSION = 2
_MARK = b"\nlsmooth-sha256:"
_TAIL = len(_MARK) + hashlib.sha256().digest_size


class CheckpointError(LsmoothError):
    """A checkpoint is missing, damaged, of another run, or of a newer lsmooth."""


# --- what a file holds ---


class _Position(TypedDict):
    step: int
    epoch: int
    batches_done: int


class _RandomOfCPU(TypedDict):
    cpu: Tensor


class _Random(_RandomOfCPU, total=False):
    cuda: Sequence[Tensor]


class _RankState(TypedDict):
    random: _Random
    carried: Any
    sums: Tensor


class _OptimizerState(TypedDict):
    state: Mapping[int, Mapping[str, Any]]
    param_groups: Sequence[Mapping[str, Any]]


class _ProblemState(TypedDict, total=False):
    averaging: AveragingState


class _OldestRunState(_RankState):
    model: Mapping[str, Tensor]
    optimizer: _OptimizerState
    reports: Sequence[Report]
    position: _Position
    seconds: float


class _RunState(_OldestRunState, total=False):
    problem: _ProblemState


class _RecorderCount(TypedDict):
    step: int
    rows: int


class _RecorderState(_RecorderCount, total=False):
    seconds: float
    densities: Tensor


class _MeasuredSteps(TypedDict):
    every: int
    coordinates: int


class _Recording(_MeasuredSteps, total=False):
    densities: bool
    critical: bool
    norms: Sequence[str | Mapping[str, str]]
    autocast: bool
    offload: bool
    probe: int
    probe_size: int
    blocks: Sequence[int | str]


class _OldestContent(TypedDict):
    format: str
    version: int
    plan: Plan
    run: _RunState
    recorder: _RecorderState
    recording: _Recording


class _Content(_OldestContent, total=False):
    ranks: Sequence[_RankState]
    run_id: str | None


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    Attributes:
        plan: What the run computes.
        run: `TrainingRun.state_dict()`.
        recorder: `Recorder.state_dict()`.
        recording: The recorder's arguments, as `Session` has them.
        ranks: Where several processes train together, `TrainingRun.state_of_rank()` of each; else empty.
        run_id: Identifier that the run's trace has too, so that trace and checkpoint are matched; None from an older
            lsmooth.
    """

    plan: Plan
    run: Mapping[str, Any]
    recorder: Mapping[str, Any]
    recording: Mapping[str, Any]
    ranks: Sequence[Mapping[str, Any]] = ()
    run_id: str | None = None


# --- files ---


def checkpoint_path(trace: str | os.PathLike[str]) -> Path:
    """Return where the checkpoint of a trace's run is: beside it, `run.h5` -> `run.h5.checkpoint.pt`."""
    path = Path(trace)
    return path.with_name(f"{path.name}.checkpoint.pt")


def find_checkpoint(trace: str | os.PathLike[str]) -> Path:
    """Return the path of the checkpoint from which a trace's run is resumed.

    An older lsmooth left out the trace's suffix (`run.checkpoint.pt`); that file is used where no newer one exists.
    """
    path, older = checkpoint_path(trace), Path(trace).with_suffix(".checkpoint.pt")
    return older if older.exists() and not path.exists() else path


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the one that was there stays until the new one is safe on the disk.

    Raises:
        OSError: It cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "run_id": checkpoint.run_id,
        "plan": dataclasses.asdict(checkpoint.plan),
        "run": checkpoint.run,
        "recorder": checkpoint.recorder,
        "recording": checkpoint.recording,
        "ranks": list(checkpoint.ranks),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w+b") as file:
            torch.save(content, file)
            file.write(_MARK + _digest(file, file.tell()))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _digest(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes of a file, and leave the file's position behind them."""
    file.seek(0)
    digest = hashlib.sha256()
    while size and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)
    return digest.digest()


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, and check its bytes and its structure; its tensors stay on the CPU.

    Raises:
        CheckpointError: It is missing, damaged, edited, or of a newer lsmooth.
    """
    content, checked = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of lsmooth.")
    version = content.get("version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path} does not say of which version it is; put back a copy of it, or start anew.")
    if version > VERSION:
        raise CheckpointError(f"{path} was written by a newer lsmooth; update lsmooth to resume it.")
    if version != 1 and not checked:
        raise CheckpointError(f"{path} is damaged: its checksum is missing; put back a copy of it, or start anew.")
    try:
        check_hint(content, _Content, "the whole")
        _check_plan(content["plan"])
        _check_counts(content)
    except StructureError as error:
        raise CheckpointError(f"{path} is not a checkpoint that lsmooth wrote: {error}.") from error
    parts = {name: content[name] for name in ("run", "recorder", "recording")}
    return Checkpoint(Plan(**content["plan"]), **parts, ranks=content.get("ranks", ()), run_id=content.get("run_id"))


def _read(path: Path) -> tuple[Any, bool]:
    """Return the content of a file, and whether it has a checksum; a wrong checksum raises CheckpointError."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is a folder or a device, not a checkpoint.")
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END) - _TAIL
            file.seek(max(0, size))
            mark, digest = file.read(len(_MARK)), file.read()
            if mark == _MARK and _digest(file, size) != digest:
                raise CheckpointError(
                    f"{path} is damaged: it does not have its checksum; put back a copy of it, or start anew."
                )
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True), mark == _MARK
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no checkpoint {path} to resume from; start the run anew, without --resume."
        ) from None
    except PermissionError:
        raise CheckpointError(f"{path} cannot be read: permission denied.") from None
    except CheckpointError:
        raise
    except Exception as error:
        # What torch raises on a damaged file is not documented.
        raise CheckpointError(f"{path} is not a whole checkpoint of lsmooth ({type(error).__name__}).") from error


# --- structure ---


def _check_plan(plan: Mapping[str, Any]) -> None:
    """Raise a StructureError unless the values of a plan are those of a task and an optimizer that there are."""
    for name, known in (("task", tasks.NAMES), ("optimizer", optim.NAMES)):
        if plan[name] not in known:
            raise StructureError(f"plan[{name}] is none that there is")
    check_hint(plan["settings"], type(tasks.get(plan["task"]).settings(plan["preset"])), "plan[settings]")
    defaults = optim.hyperparameters(plan["optimizer"])
    for name, value in plan["hyperparameters"].items():
        if name not in defaults:
            raise StructureError("plan[hyperparameters] has a name that the optimizer does not have")
        check_hint(value, hint_like(defaults[name]), f"plan[hyperparameters][{name}]")


def _check_counts(content: Mapping[str, Any]) -> None:
    """Raise a StructureError unless counts and times are from 0 on, and recorder, run and reports agree."""
    run, recorder = content["run"], content["recorder"]
    counts = {**run["position"], "rows": recorder["rows"], "seconds": run["seconds"]}
    counts["the recorder's seconds"] = recorder.get("seconds", 0.0)
    counts["the number of averaged steps"] = run.get("problem", {}).get("averaging", {}).get("steps", 0)
    for name, value in counts.items():
        if not 0 <= value < math.inf:
            raise StructureError(f"{name} is not a number from 0 on")
    probe = [content["recording"].get(name) for name in ("probe", "probe_size")]
    if probe != [None, None] and not all(number is not None and number >= 1 for number in probe):
        raise StructureError("the probes have no number of examples")
    if len(content["recording"].get("blocks", (1, 1))) != 2:
        raise StructureError("the blocks of layers are not said by a pair")
    if recorder["step"] != run["position"]["step"]:
        raise StructureError("the recorder is at another step than the run")
    if len({frozenset(report["metrics"]) for report in run["reports"]}) > 1:
        raise StructureError("reports have different metrics")
    # What `Problem.metrics` promises.
    promised = {"loss", tasks.get(content["plan"]["task"]).metric}
    if any(not promised <= report["metrics"].keys() for report in run["reports"]):
        raise StructureError("reports have no loss, or not the task's metric")
    ends = itertools.accumulate(report["steps"] for report in run["reports"])
    if any(report["step"] != end for report, end in zip(run["reports"], ends, strict=True)):
        raise StructureError("reports leave out steps")
    densities = recorder.get("densities", torch.empty(0, dtype=torch.int64))
    check_like(densities, torch.empty(densities.shape, dtype=torch.int64), "densities")


def check_fits(checkpoint: Checkpoint, plan: Plan, data: Data) -> None:
    """Check that the tensors of a checkpoint are those of its run: names, shapes, dtypes and layout.

    The run is begun anew and makes one step, on batches of its own: its state then has the form that the checkpoint's
    must have.

    Args:
        checkpoint: The checkpoint.
        plan: Its plan, perhaps for another device or more steps.
        data: What the task found.

    Raises:
        StructureError: A part has another form.
    """
    state = checkpoint.run
    alike = first_step(plan, data)
    for name in ("model", "sums"):
        check_like(state[name], alike[name], name)
    # Checkpoints of an older lsmooth lack it; the mean's weights are those of another model of the same form.
    if "averaging" in state.get("problem", {}):
        weights = state["problem"]["averaging"]["weights"]
        check_like(weights, alike["model"] if weights else {}, "averaging")
    begun = state["position"]["step"] > 0
    check_like(state["optimizer"]["state"], alike["optimizer"]["state"] if begun else {}, "optimizer")
    for number, mine in enumerate(checkpoint.ranks or [state]):
        place = f"ranks[{number}] " if checkpoint.ranks else ""
        check_like(mine["random"]["cpu"], alike["random"]["cpu"], f"{place}random")
        # Of several processes, each has a part of a batch. Some CPUs give other floating types.
        example = alike["carried"] if state["position"]["batches_done"] else None
        check_like(mine["carried"], example, f"{place}carried", exact=False)


def first_step(plan: Plan, data: Data) -> Mapping[str, Any]:
    """Return the state of a plan's run after its first step, uncompiled and in this process alone."""
    changes = {"steps": 2, "report_every": None}
    plan = dataclasses.replace(plan, compile=False, settings={**plan.settings, **changes})
    run = plan.start(data)
    next(run.steps())
    return run.state_dict()
