"""Hears what evaluating a loss again prints, logs, and writes to files that it opens."""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lsmooth.replay.microbatch import replaying


@contextlib.contextmanager
def heard_process_wide() -> Iterator[list[str]]:
    """Run a block; yield descriptions of what evaluations in it print, log, and open to write.

    Other threads go on printing and logging meanwhile, which is passed on and not noted. Threads of a backward pass are
    the evaluation's own.
    """
    found: list[str] = []
    thread = threading.get_ident()

    def note(what: str) -> None:
        if replaying() and (threading.get_ident() == thread or torch._C._current_graph_task_id() != -1):
            found.append(what)

    with (
        _replaced(sys, "stdout", lambda real: _Output(real, lambda: note("what is printed"))),
        _replaced(builtins, "open", lambda real: _opening(real, note)),
        _replaced(io, "open", lambda real: _opening(real, note)),
        _records_noted(lambda: note("what is logged")),
    ):
        yield found


class _Output:
    """Stands for the stream that `print` writes to; all else of the stream is as it was."""

    def __init__(self, stream: Any, note: Callable[[], None]) -> None:
        self._stream = stream
        self._note = note

    def write(self, text: str) -> Any:
        self._note()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _opening(real: Callable[..., Any], note: Callable[[str], None]) -> Callable[..., Any]:
    def open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(mode, str) and not set("wax+").isdisjoint(mode):
            note(f"the file {file}")
        return real(file, mode, *args, **kwargs)

    return open


@contextlib.contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Run a block in which a Python module holds something else under a name."""
    real = getattr(owner, name)
    if real is None:
        # A process without a terminal has no stream to print to.
        yield
        return
    made = make(real)
    setattr(owner, name, made)
    try:
        yield
    finally:
        if getattr(owner, name) is made:
            setattr(owner, name, real)


@contextlib.contextmanager
def _records_noted(note: Callable[[], None]) -> Iterator[None]:
    """Run a block in which each record of `logging` is noted."""
    real = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        note()
        return real(*args, **kwargs)

    logging.setLogRecordFactory(make)
    try:
        yield
    finally:
        if logging.getLogRecordFactory() is make:
            logging.setLogRecordFactory(real)
