"""Where the runs of a comparison are computed: processes on this machine, or the workers of a Ray cluster.

Both call `execute` on a plan, with the same number of threads, so that results do not depend on where a run was made.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Protocol

from lsmooth.errors import InvalidArgumentError, LsmoothError

# Times that a run is tried in all, where its worker disappears.
ATTEMPTS = 3
_TICK_SECONDS = 1.0


class EngineError(LsmoothError):
    """Runs cannot be given to workers, or were lost again and again."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        outcome: "finished", "diverged", or "failed" (it raised an error).
        reports: Its reports, as dictionaries of `Report`'s fields.
        message: What went wrong, where it failed.
    """

    outcome: Literal["finished", "diverged", "failed"]
    reports: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""


@dataclass(frozen=True)
class Moment:
    """The progress of a run.

    Attributes:
        step: Optimizer steps done.
        total: Optimizer steps of the whole run; an estimate, where epochs differ in length.
        loss: Loss of the last step, as it is shown.
        lr: Learning rate of the last step.
    """

    step: int
    total: int
    loss: float
    lr: float


# A job is a name and the plan of a run in plain values (`dataclasses.asdict`).
Job = tuple[str, Mapping[str, Any]]
Tick = Callable[[str, Moment], None]
Finished = Callable[[str, RunResult], None]


class Engine(Protocol):
    """Makes runs, several at a time."""

    def run(self, jobs: Sequence[Job], tick: Tick, finished: Finished) -> None:
        """Make all runs; call `tick(name, moment)` as one progresses, and `finished(name, result)` at its end."""


def execute(plan: Mapping[str, Any], threads: int, tick: Callable[[Moment], None] = lambda moment: None) -> RunResult:
    """Make the run of a plan, evaluated on "valid" where that is held out, and on "test" otherwise.

    Args:
        plan: The plan in plain values.
        threads: Threads that torch computes with on the CPU.
        tick: Called with the progress of the run, about once a second.
    """
    import torch

    from lsmooth.tasks.plan import Plan

    torch.set_num_threads(threads)
    try:
        chosen = Plan(**plan)
        run = chosen.start()
        told = time.monotonic()
        for step in run.steps(split="valid" if chosen.hold_out else "test"):
            now = time.monotonic()
            if now - told >= _TICK_SECONDS:
                told = now
                assert run.loss is not None
                tick(Moment(step, run.total_steps, float(run.loss), run.lr))
    except LsmoothError as error:
        return RunResult("failed", message=str(error))
    except Exception as error:
        # One run's bug or lack of memory must not take the others with it.
        return RunResult("failed", message=f"{type(error).__name__}: {_first_line(error) if str(error) else ''}")
    reports = [asdict(report) for report in run.reports]
    return RunResult("diverged" if run.reports[-1].diverged else "finished", reports)


class LocalEngine:
    """Processes on this machine.

    Args:
        jobs: Number of runs at a time.
        threads: Threads of each.
    """

    def __init__(self, jobs: int, threads: int = 1) -> None:
        if jobs < 1 or threads < 1:
            raise InvalidArgumentError(f"jobs={jobs} and threads={threads} must be at least 1.")
        self._jobs = jobs
        self._threads = threads

    def run(self, jobs: Sequence[Job], tick: Tick, finished: Finished) -> None:
        """Make all runs; a run whose process dies is made again.

        Raises:
            EngineError: A run's processes died again and again.
        """
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            # torch, and what its optimizers import when they are first used, are imported once; threads only start in
            # the workers.
            context.set_forkserver_preload(["lsmooth.tasks.plan", "torch._dynamo"])
        waiting = [(name, plan, 1) for name, plan in reversed(jobs)]
        at_work: dict[Connection, tuple[str, Mapping[str, Any], int, Any]] = {}
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self._jobs:
                    name, plan, attempt = waiting.pop()
                    here, there = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(there, plan, self._threads), daemon=True)
                    process.start()
                    there.close()
                    at_work[here] = (name, plan, attempt, process)
                for connection in wait(list(at_work)):
                    assert isinstance(connection, Connection)
                    name, plan, attempt, process = at_work[connection]
                    try:
                        message = connection.recv()
                    except EOFError:
                        # The process died before it had a result.
                        del at_work[connection]
                        process.join()
                        if attempt == ATTEMPTS:
                            raise EngineError(
                                f"The process of {name} died {ATTEMPTS} times (exit code {process.exitcode}); is there "
                                "enough memory? Fewer --jobs need less."
                            ) from None
                        waiting.append((name, plan, attempt + 1))
                        continue
                    if isinstance(message, Moment):
                        tick(name, message)
                    else:
                        del at_work[connection]
                        process.join()
                        finished(name, message)
        finally:
            for *_, process in at_work.values():
                process.terminate()
            for *_, process in at_work.values():
                process.join()


def _work(connection: Connection, plan: Mapping[str, Any], threads: int) -> None:
    import signal

    # Ctrl-C goes to the whole group of processes; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(execute(plan, threads, connection.send))
    connection.close()


class RayEngine:
    """The workers of a Ray cluster: the one that RAY_ADDRESS names or that runs here, else a local one.

    Args:
        threads: Threads of each run, and the CPUs it asks Ray for.
        gpus: GPUs that each run asks for; may be a fraction.

    Raises:
        EngineError: Ray is not installed, or no cluster can be reached.
    """

    def __init__(self, threads: int = 1, gpus: float = 0.0) -> None:
        try:
            import ray
        except ImportError:
            raise EngineError(
                "--engine ray needs Ray, which is not installed; pip install 'lsmooth[ray]', or leave --engine out."
            ) from None
        self._ray: Any = ray
        self._threads = threads
        self._gpus = gpus
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, configure_logging=False)
            except Exception as error:
                raise EngineError(f"No Ray cluster can be reached ({_first_line(error)}).") from error

    def run(self, jobs: Sequence[Job], tick: Tick, finished: Finished) -> None:
        """Make all runs; Ray makes those of lost workers again. Steps are only reported at the end of a run.

        Raises:
            EngineError: A run's workers were lost again and again.
        """
        ray = self._ray
        remote = ray.remote(num_cpus=self._threads, num_gpus=self._gpus, max_retries=ATTEMPTS - 1)(execute)
        names = {remote.remote(dict(plan), self._threads): name for name, plan in jobs}
        pending: Iterable[Any] = list(names)
        while pending:
            ready, pending = ray.wait(list(pending), num_returns=1)
            for reference in ready:
                try:
                    result = ray.get(reference)
                except Exception as error:
                    for other in pending:
                        ray.cancel(other)
                    raise EngineError(f"Ray lost {names[reference]} ({_first_line(error)}).") from error
                finished(names[reference], result)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
