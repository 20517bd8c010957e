"""Progress of training runs: a bar in a terminal; a line from time to time in a file or a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from lsmooth.cli.table import duration

if TYPE_CHECKING:
    from lsmooth.tasks.engines import Moment, RunResult
    from lsmooth.tasks.session import Session
    from lsmooth.tasks.training import Report

# Seconds between two looks at the loss in a terminal. Each look waits for the device.
_LOOK_SECONDS = 1.0
# Without a terminal, a line comes after this time or this share of the work, whichever ends first.
_LINE_SECONDS = 30.0
_LINE_SHARE = 0.1
# Steps of the bar for each run of a comparison, whatever its length.
_BAR_STEPS = 1000


class Pace:
    """Decides without a terminal when the next line is due, and estimates the time that is left.

    Args:
        done: Share of the work that is done at the start, from 0 to 1.
    """

    def __init__(self, done: float = 0.0) -> None:
        self._start: tuple[float, float] | None = None
        self._line = (time.monotonic(), done)

    def due(self, done: float) -> bool:
        """Return whether a line is due, and begin to wait for the next one if so."""
        now = time.monotonic()
        if self._start is None:
            # The first step is slower than the others: compilers and caches work then.
            self._start = (now, done)
        before, share = self._line
        # A share of the work is a sum of rounded numbers.
        if now - before < _LINE_SECONDS and done - share < _LINE_SHARE - 1e-9 and done < 1:
            return False
        self._line = (now, done)
        return True

    def left(self, done: float) -> str:
        """Return the time left in words; empty before it can be known, and at the end."""
        if self._start is None or done >= 1 or done <= self._start[1]:
            return ""
        start, before = self._start
        seconds = (time.monotonic() - start) * (1 - done) / (done - before)
        return f"{duration(max(1, round(seconds)))} left"


class Progress:
    """Shows one training run; pass it as `watch` to `Session.train`.

    Args:
        session: The run. A resumed run is past its first steps.
        reports: Whether to print a line for each report.
    """

    def __init__(self, session: Session, *, reports: bool = True) -> None:
        run = session.run
        self._reports = reports
        self._reported = len(run.reports)
        self._shown_step = run.step
        self._looked = -_LOOK_SECONDS
        self._pace = Pace(run.step / run.total_steps)
        self._bar: Any = bar(run.total_steps, "training") if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.__enter__()
            # The steps of a resumed run do not count for the time left.
            self._bar.pos = self._shown_step
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, traceback)

    def __call__(self, session: Session) -> None:
        """Show the run after a step."""
        run = session.run
        if self._reports and len(run.reports) > self._reported:
            self._reported = len(run.reports)
            print_line(report_line(run.reports[-1]))
        if self._bar is None:
            # Epochs may differ in length, so that the total is an estimate.
            share = min(1.0, run.step / run.total_steps)
            if self._pace.due(share):
                facts = [*_facts(session), self._pace.left(share)]
                total = max(run.total_steps, run.step)
                print_line(f"step {run.step} of {total}: {', '.join(fact for fact in facts if fact)}")
            return
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS and not run.done:
            return
        self._looked = now
        # The bar must not end early.
        self._bar.length = max(self._bar.length, run.step + (not run.done))
        self._bar.update(run.step - self._shown_step, "  ".join(_facts(session)))
        self._shown_step = run.step


class ProgressOfRuns:
    """Shows several runs; `tick` and `finished` are the listeners of `Comparison.make`.

    Args:
        names: The runs.
        label: What the runs do, such as "training".
        metric: The metric to print of a run that has ended.
    """

    def __init__(self, names: Sequence[str], label: str, metric: str) -> None:
        self._label = label
        self._metric = metric
        self._done = dict.fromkeys(names, 0.0)
        self._at_work: dict[str, Moment] = {}
        self._pace = Pace()
        self._bar: Any = bar(_BAR_STEPS * len(names), label) if sys.stderr.isatty() else None

    def __enter__(self) -> ProgressOfRuns:
        if self._bar is not None:
            self._bar.__enter__()
        else:
            print_line(f"{self._label}: {len(self._done)} run{'s' * (len(self._done) > 1)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, traceback)

    def tick(self, name: str, moment: Moment) -> None:
        """Show the progress of a run."""
        self._at_work[name] = moment
        self._move(name, min(0.99, moment.step / moment.total))

    def finished(self, name: str, result: RunResult) -> None:
        """Print a line for a run that has ended."""
        self._at_work.pop(name, None)
        print_line(f"{_shown(name)}: {outcome(result, self._metric)}")
        self._move(name, 1.0)

    def _move(self, name: str, share: float) -> None:
        before, self._done[name] = self._done[name], share
        ended = sum(value == 1 for value in self._done.values())
        text = f"{ended} of {len(self._done)} runs done"
        if self._bar is not None:
            at_work = " ".join(f"{self._done[other]:.0%}" for other in self._at_work)
            text += f", others at {at_work}" if at_work else ""
            self._bar.update(int(_BAR_STEPS * share) - int(_BAR_STEPS * before), text)
            return
        total = sum(self._done.values()) / len(self._done)
        if self._pace.due(total):
            left = self._pace.left(total)
            print_line(f"{self._label}: {text}, {total:.0%} of the work{f', {left}' if left else ''}")
            for other, at in self._at_work.items():
                print_line(f"  {_shown(other)}: step {at.step} of {at.total}, loss {at.loss:.4g}, lr {at.lr:.3g}")


def _shown(name: str) -> str:
    """Return a run's name without its empty parts, such as settings that were not chosen."""
    return " | ".join(part for part in name.split(" | ") if part)


def outcome(result: RunResult, metric: str) -> str:
    """Return the outcome of a run in words."""
    if result.outcome == "failed":
        return f"failed ({result.message})"
    if result.outcome == "diverged":
        return f"diverged before step {result.reports[-1]['step']}"
    last = result.reports[-1]
    return f"train loss {last['train_loss']:.4g}, {metric} {last['metrics'][metric]:.4g} in {last['seconds']:.0f} s"


def bar(length: int, label: str) -> Any:
    """Return a bar on stderr; `update(steps, text)` moves it and writes a text beside it."""
    return click.progressbar(length=length, label=label, item_show_func=lambda text: text, file=sys.stderr, width=24)


def print_line(text: str) -> None:
    """Print a line on stderr, in place of the bar if there is one."""
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    click.echo(text, err=True)


def _facts(session: Session) -> list[str]:
    """Return loss, learning rate and smoothness of a run; the loss is read from the device."""
    run, latest = session.run, session.recorder.latest
    facts = [] if run.loss is None else [f"loss {float(run.loss):.3f}"]
    facts.append(f"lr {run.lr:.3g}")
    if latest is not None:
        facts.append(f"smoothness {latest.smoothness:.3g}")
    return facts


def report_line(report: Report) -> str:
    """Return a report as one line."""
    metrics = ", ".join(f"valid {name} {value:.4g}" for name, value in report.metrics.items())
    clipped = f", {report.clipped} of {report.steps} steps clipped" if report.clipped else ""
    return f"step {report.step:>6} (epoch {report.epoch:.2f}): train loss {report.train_loss:.4g}, {metrics}{clipped}"


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one sentence, without the place in the code that they came from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: click.echo(f"\nWarning: {message}", err=True)
        yield
