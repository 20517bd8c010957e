"""Ctrl-C, let through only where it can do no harm."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class DeferredInterrupt:
    """Keeps Ctrl-C from striking while parameters are being moved or put back.

    An interrupt during an evaluation (the user's own code) strikes at once, and the measurement is unwound; at any
    other moment it waits until everything is back in its place.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._pending: FrameType | bool | None = False
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
                self._installed = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            if self._pending is not False:
                self._previous(signal.SIGINT, self._pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._allowed:
            self._allowed = False
            self._previous(number, frame)
        else:
            self._pending = frame

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Let interrupts through in a block."""
        self._allowed = True
        try:
            if self._pending is not False:
                pending, self._pending, self._allowed = self._pending, False, False
                self._previous(signal.SIGINT, pending)
            yield
        finally:
            self._allowed = False
