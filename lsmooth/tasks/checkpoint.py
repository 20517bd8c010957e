"""Checkpoints of a training run: written whole or not at all, read without executing anything in them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lsmooth.errors import LsmoothError
from lsmooth.tasks.plan import Plan

FORMAT = "lsmooth-checkpoint"
VERSION = 1


class CheckpointError(LsmoothError):
    """A checkpoint is missing, damaged, or of a newer lsmooth."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    Attributes:
        plan: What the run computes.
        run: `TrainingRun.state_dict()`.
        recorder: `Recorder.state_dict()`.
        recording: The recorder's arguments: every, coordinates, ....
        ranks: Where several processes train together, `TrainingRun.state_of_rank()` of each; else empty.
    """

    plan: Plan
    run: Mapping[str, Any]
    recorder: Mapping[str, Any]
    recording: Mapping[str, Any]
    ranks: Sequence[Mapping[str, Any]] = ()


def checkpoint_path(trace: str | os.PathLike[str]) -> Path:
    """Return where the checkpoint of a trace's run is: beside it, `run.h5` -> `run.checkpoint.pt`."""
    return Path(trace).with_suffix(".checkpoint.pt")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the one that was there stays until the new one is safe on the disk.

    Raises:
        OSError: It cannot be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "plan": dataclasses.asdict(checkpoint.plan),
        "run": checkpoint.run,
        "recorder": checkpoint.recorder,
        "recording": checkpoint.recording,
        "ranks": list(checkpoint.ranks),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; its tensors stay on the CPU.

    Raises:
        CheckpointError: It is missing, damaged, or of a newer lsmooth.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no checkpoint {path} to resume from; start the run anew, without --resume."
        ) from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint.") from None
    except PermissionError:
        raise CheckpointError(f"{path} cannot be read: permission denied.") from None
    except Exception as error:
        # What torch raises on a damaged file is not documented.
        raise CheckpointError(f"{path} is not a whole checkpoint of lsmooth ({type(error).__name__}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of lsmooth.")
    if content["version"] > VERSION:
        raise CheckpointError(f"{path} was written by a newer lsmooth; update lsmooth to resume it.")
    parts = {name: content[name] for name in ("run", "recorder", "recording")}
    return Checkpoint(Plan(**content["plan"]), **parts, ranks=content.get("ranks", ()))
