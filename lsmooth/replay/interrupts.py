"""Defers signals while parameters are away from where training left them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from lsmooth.errors import RecorderError

_Handler = Callable[[int, FrameType | None], Any]


class DeferredSignals:
    """Defers the handling of signals in Python until everything is back in its place.

    A signal's handler may save a checkpoint (before preemption), or raise. Ctrl-C under Python's own handler is not
    deferred while the user's code is evaluated: it strikes at once, and the measurement is unwound.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._allowed = False
        self._pending: list[tuple[int, FrameType | None]] = []
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> DeferredSignals:
        # Only the main thread handles signals.
        if threading.current_thread() is not threading.main_thread():
            return self
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        self._previous = {number: handler for number, handler in handlers.items() if callable(handler)}
        self._deferring = True
        try:
            for number in self._previous:
                signal.signal(number, self._handle)
        except BaseException:
            # A signal whose handler was not replaced yet has raised.
            self._deferring = False
            self._put_back()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # From here on `_handle` calls the previous handler, in case an exception leaves it installed.
        self._deferring = False
        with contextlib.ExitStack() as stack:
            for number, frame in reversed(self._pending):
                stack.callback(self._previous[number], number, frame)
            stack.callback(self._put_back)

    def _put_back(self) -> None:
        try:
            self._put_back_each()
        except BaseException:
            # A signal in between has raised; the remaining handlers are put back first.
            self._put_back_each()
            raise

    def _put_back_each(self) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        ends = self._previous[number] is signal.default_int_handler
        if not self._deferring:
            self._previous[number](number, frame)
        elif ends and self._allowed:
            self._allowed = False
            self._previous[number](number, frame)
        elif number not in [pending for pending, _ in self._pending]:
            self._pending.append((number, frame))

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Run a block in which Ctrl-C strikes at once, also one that has been deferred so far.

        Raises:
            RecorderError: The block has called `sys.exit`, which no signal's handler does here.
        """
        self._allowed = True
        try:
            for number, frame in self._pending:
                if self._previous[number] is signal.default_int_handler:
                    self._pending = [(other, where) for other, where in self._pending if other != number]
                    self._handle(number, frame)
            yield
        except SystemExit as end:
            # Other threads may be ended from outside by this exception.
            if not self._deferring:
                raise
            raise RecorderError(
                "The loss called sys.exit when it was evaluated again at another point; leave the end of training to "
                "the loop, or to the time when lsmooth.replay.replaying() is false."
            ) from end
        finally:
            self._allowed = False


# Signals sent from outside of the process. SIGPROF is not among them, since sampling profilers need it at once.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in (
        *("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM"),
        *("SIGCONT", "SIGTSTP", "SIGCHLD", "SIGXCPU", "SIGWINCH", "SIGBREAK"),
    )
    if hasattr(signal, name)
)
