"""How a training run shows itself in the terminal: a bar while it runs, a line at each report."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lsmooth.tasks.session import Session
    from lsmooth.tasks.training import Report

# The loss is read from the device this often, and at no other time between reports.
_SECONDS = 1.0


class Progress:
    """Shows a session: pass it as `watch` to `Session.train`.

    Args:
        session: What is shown; its run may be past its first steps.
        reports: Whether to print a line at each report.
    """

    def __init__(self, session: Session, *, reports: bool = True) -> None:
        self._reports = reports
        self._reported = len(session.run.reports)
        self._shown_step = session.run.step
        self._shown_at = -_SECONDS
        self._stream = sys.stderr
        self._bar: Any = click.progressbar(
            length=session.run.total_steps,
            label="training",
            item_show_func=lambda text: text,
            file=self._stream,
            width=24,
        )

    def __enter__(self) -> Progress:
        self._bar.__enter__()
        # What a resumed run has behind it does not count for the time left.
        self._bar.pos = self._shown_step
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def __call__(self, session: Session) -> None:
        """Take a look after a step."""
        run = session.run
        if self._reports and len(run.reports) > self._reported:
            self._reported = len(run.reports)
            if self._stream.isatty():
                click.echo("\r\033[K", nl=False, file=self._stream)
            click.echo(report_line(run.reports[-1]), file=self._stream)
        now = time.monotonic()
        if now - self._shown_at < _SECONDS and not run.done:
            return
        self._shown_at = now
        parts = [f"lr {run.lr:.3g}"]
        if self._stream.isatty() and run.loss is not None:
            parts.insert(0, f"loss {float(run.loss):.3f}")
        latest = session.recorder.latest
        if latest is not None:
            parts.append(f"smoothness {latest.smoothness:.3g}")
        # Epochs of differing length: the length is an estimate, the bar must not end early.
        self._bar.length = max(self._bar.length, run.step + (not run.done))
        self._bar.update(run.step - self._shown_step, "  ".join(parts))
        self._shown_step = run.step


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
