"""A recorded training run: trace and checkpoint side by side, stopped and resumed without losing a step."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from lsmooth.errors import LsmoothError, TraceError, TraceWarning, compiler_failure
from lsmooth.recorder import Recorder
from lsmooth.tasks.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_fits,
    checkpoint_path,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from lsmooth.tasks.parallel import ranks_wanted
from lsmooth.tasks.plan import Plan
from lsmooth.tasks.probes import probes_of
from lsmooth.tasks.structure import StructureError, check_like
from lsmooth.tasks.task import Data
from lsmooth.tasks.training import TrainingRun
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import Mode

Outcome = Literal["finished", "stopped", "diverged"]


class CompileError(LsmoothError):
    """torch.compile found no way to compile a model."""


class Session:
    """One run with its recorder and checkpoints; use it as a context manager.

    Args:
        plan: What is trained.
        trace: Where the trace goes; the checkpoint goes beside it.
        recording: Arguments of `Recorder`: every, coordinates, densities, critical, norms, autocast, offload, blocks as
            a pair; and `probe`, the number of training examples that are measured in place of each step's batch,
            `probe_size` of them at a time.
        data: What the task found already; None to find it.
        mode: "x" refuses an existing trace, "w" replaces it.
        checkpoint_seconds: Seconds between two checkpoints; None for no checkpoints at all.
        checkpoint: Continue from this one (see `resume`).
        parallel: Whether the processes of torch.distributed train together; the first of them writes.

    Raises:
        TraceError: The trace cannot be written; a session does not begin without one.
        CheckpointError: The checkpoint is not of such a run.

    Attributes:
        run: The training run.
        recorder: Its recorder.
        checkpoint_path: Where the checkpoint is.
    """

    def __init__(
        self,
        plan: Plan,
        trace: Path,
        recording: Mapping[str, Any],
        *,
        data: Data | None = None,
        mode: Mode = "x",
        checkpoint_seconds: float | None = 120.0,
        checkpoint: Checkpoint | None = None,
        parallel: bool = False,
    ) -> None:
        task_data = data
        if task_data is None:
            from lsmooth import tasks

            task_data = tasks.get(plan.task).find_data(plan.data)
        self.plan = plan
        self.trace = trace
        self.checkpoint_path = checkpoint_path(trace)
        self._recording = dict(recording)
        self._checkpoint_seconds = checkpoint_seconds
        self._saved = time.monotonic()
        self._run_id = uuid.uuid4().hex if checkpoint is None else checkpoint.run_id
        if checkpoint is not None:
            with _fitting(trace):
                check_fits(checkpoint, plan, task_data)
        self.run: TrainingRun = plan.start(task_data, parallel=parallel)
        with warnings.catch_warnings():
            # The recorder warns of a trace that it cannot write; here that is an error, raised below.
            warnings.simplefilter("ignore", TraceWarning)
            self.recorder = Recorder(
                self.run.model,
                self.run.optimizer,
                trace,
                mode=mode if checkpoint is None else "a",
                seed=plan.seed,
                metadata={**_description(plan, task_data), "run_id": self._run_id},
                **self._probed(),
            )
        if self.recorder.failure is not None:
            self.recorder.close()
            raise TraceError(self.recorder.failure)
        if checkpoint is not None:
            try:
                self._go_on_from(checkpoint)
            except BaseException:
                self.recorder.close()
                raise

    def _probed(self) -> dict[str, Any]:
        """Return the arguments of the recorder, in which probes stand for their number of examples."""
        arguments = dict(self._recording)
        if arguments.get("probe") is not None:
            arguments["probe"] = probes_of(self.run, arguments["probe"], arguments["probe_size"])
        return arguments

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        with _fitting(self.trace):
            if self._recording.get("densities") and "densities" in checkpoint.recorder:
                counts = self.recorder.state_dict()["densities"]
                check_like(checkpoint.recorder["densities"], counts, "the recorder's densities")
            self.recorder.load_state_dict(checkpoint.recorder)
            mine = checkpoint.ranks[self.run.parallel.rank] if self.run.parallel is not None else {}
            self.run.load_state_dict({**checkpoint.run, **mine})

    @classmethod
    def resume(
        cls,
        trace: Path,
        *,
        device: str | None = None,
        extend: Mapping[str, Any] | None = None,
        checkpoint_seconds: float | None = 120.0,
        parallel: bool = False,
    ) -> Session:
        """Resume the run of a trace from its checkpoint, on another device or for more steps if wanted.

        Args:
            trace: The trace; its checkpoint is looked for beside it.
            device: Where to go on; where it was by default.
            extend: Settings that only say when the run ends: steps, epochs.
            checkpoint_seconds: As in `Session`.
            parallel: As in `Session`; there must be as many processes as the run was begun with.

        Raises:
            CheckpointError: There is no readable checkpoint, or it is of another run or number of processes.
            TraceError: There is no such trace, or it is another run's.
        """
        path = find_checkpoint(trace)
        checkpoint = load_checkpoint(path)
        check_ranks(trace, checkpoint, parallel)
        if not trace.exists():
            raise TraceError(f"There is no trace {trace} to continue, though its checkpoint is there; put it back.")
        check_run(trace, path, checkpoint)
        plan = checkpoint.plan
        if device is not None:
            plan = dataclasses.replace(plan, device=device)
        if extend:
            plan = plan.with_hyperparameters(extend)
        return cls(
            plan,
            trace,
            checkpoint.recording,
            checkpoint_seconds=checkpoint_seconds,
            checkpoint=checkpoint,
            parallel=parallel,
        )

    def train(self, watch: Callable[[Session], None] = lambda session: None) -> Outcome:
        """Train until the run is over, diverges, or is asked to stop by Ctrl-C or SIGTERM (it then ends the step).

        Args:
            watch: Called after every step; it must not wait for the device more often than it has to.
        """
        self.save()
        parallel = self.run.parallel
        # torchrun sends a Ctrl-C again to processes that have had it, and a SIGTERM to one after the other.
        with _stop_requests(strikes=parallel is None) as stop, _compiling(stop):
            for _ in self.run.steps(self.recorder):
                watch(self)
                wishes = [self._due(), stop.is_set()]
                if parallel is not None:
                    # All ranks act after the same step, on the wishes that any rank had after the step before.
                    wishes = parallel.heard() or [False, False]
                if wishes[0]:
                    self.save()
                if wishes[1]:
                    break
                if parallel is not None:
                    parallel.ask([self._due(), stop.is_set()])
        if parallel is not None:
            parallel.heard()
        self.recorder.flush()
        self.save()
        if self.run.reports and self.run.reports[-1].diverged:
            return "diverged"
        return "finished" if self.run.done else "stopped"

    def save(self) -> None:
        """Write a checkpoint of this moment, all ranks together; a disk that is full or gone ends in a warning."""
        if self._checkpoint_seconds is None:
            return
        self._saved = time.monotonic()
        parallel = self.run.parallel
        ranks = [] if parallel is None else parallel.on_rank_0(self.run.state_of_rank())
        if parallel is not None and parallel.rank:
            return
        # The trace must hold all steps before the checkpoint, or a resumed run would leave a gap.
        self.recorder.flush()
        try:
            save_checkpoint(
                self.checkpoint_path,
                Checkpoint(
                    self.plan,
                    self.run.state_dict(),
                    self.recorder.state_dict(),
                    self._recording,
                    ranks,
                    self._run_id,
                ),
            )
        except OSError as error:
            warnings.warn(
                f"{self.checkpoint_path} cannot be written ({error.strerror}): the run goes on, and can only be "
                "resumed from the checkpoint before.",
                stacklevel=2,
            )

    def close(self) -> None:
        """Finish the trace."""
        self.recorder.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _due(self) -> bool:
        seconds = self._checkpoint_seconds
        return seconds is not None and time.monotonic() - self._saved >= seconds


def check_ranks(trace: Path, checkpoint: Checkpoint, parallel: bool) -> None:
    """Raise a CheckpointError if another number of processes than there are now made this checkpoint."""
    before = max(1, len(checkpoint.ranks))
    now = ranks_wanted() if parallel else 1
    if before != now:
        how = f"resume it under torchrun with {before} processes" if before > 1 else "resume it without torchrun"
        raise CheckpointError(f"{trace} was begun with {before} process{'es' * (before > 1)}, not {now}; {how}.")


def check_run(trace: Path, path: Path, checkpoint: Checkpoint) -> None:
    """Raise a CheckpointError if a checkpoint is of another run than a trace; warn if an older lsmooth wrote it."""
    with Trace(trace) as opened:
        description = opened.metadata.get("user_metadata")
    run_id = description.get("run_id") if isinstance(description, dict) else None
    if run_id != checkpoint.run_id:
        raise CheckpointError(
            f"{path} is of another run than {trace}; put back the checkpoint of this run, or start another run with "
            "another --trace."
        )
    if checkpoint.run_id is None:
        warnings.warn(
            f"{path} is from an older lsmooth and has no checksum: damage to it cannot be noticed. The checkpoints "
            "from now on have one.",
            stacklevel=3,
        )


@contextlib.contextmanager
def _fitting(trace: Path) -> Iterator[None]:
    """Run a block that uses a checkpoint; raise CheckpointError, in one sentence, where the checkpoint does not fit."""
    try:
        yield
    except LsmoothError:
        raise
    except Exception as error:
        # What torch raises for values that it cannot take is not documented.
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        kind = "" if isinstance(error, StructureError) else f"{type(error).__name__}: "
        raise CheckpointError(
            f"The checkpoint of {trace} does not fit its run ({kind}{reason}); put back a copy of it, or start anew."
        ) from error


def _description(plan: Plan, data: Data) -> dict[str, Any]:
    """Return the metadata of a run that the recorder does not know itself."""
    return {
        "task": plan.task,
        "data": data.origin,
        "preset": plan.preset,
        "settings": dict(plan.settings),
        "hyperparameters": dict(plan.hyperparameters),
    }


@contextlib.contextmanager
def _compiling(stop: threading.Event) -> Iterator[None]:
    """Run a block that compiles; raise CompileError, in one sentence, where the compiler fails or is stopped."""
    try:
        yield
    except Exception as error:
        reason = compiler_failure(error)
        if reason is None:
            raise
        if stop.is_set():
            # Ctrl-C reaches the whole group of processes, and so ends the compiler's processes too.
            raise CompileError(
                "Stopped while the model was being compiled; --resume goes on from the last checkpoint."
            ) from error
        raise CompileError(f"The model cannot be compiled here ({reason}); leave out --compile.") from error


@contextlib.contextmanager
def _stop_requests(strikes: bool) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second Ctrl-C interrupts as usual.

    Unless it is not to strike: then a process that was asked, or one that heard of it from another, does not fall to a
    signal that reaches it later, before it has finished.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        if strikes:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items() if strikes else ():
            signal.signal(number, handler)
