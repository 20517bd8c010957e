"""Hears what evaluating a loss again prints, logs, writes and sends."""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import torch

from lsmooth.replay.leftovers import name_of
from lsmooth.replay.microbatch import replaying

# Functions that write, send or start something: their names, and the modules of Python's library that they belong to.
_WRITE = {
    *("write", "writelines", "pwrite", "writev", "pwritev", "sendfile", "truncate", "ftruncate"),
    *("writerow", "writerows", "send", "sendall", "sendto", "sendmsg", "put"),
    *("remove", "unlink", "rename", "replace", "rmdir", "link", "symlink", "system", "posix_spawn", "_execute_child"),
}
_WRITERS = {
    *("posix", "nt", "_io", "_csv", "mmap", "_socket", "_ssl", "subprocess"),
    *("queue", "_queue", "multiprocessing.queues"),
}
_EXECUTE = {"execute", "executemany", "executescript"}
# Beginnings of the names of modules whose writing is noted elsewhere, or is no part of a loss.
_NOT_THE_LOSS = ("lsmooth.", "logging", "importlib.")


@contextlib.contextmanager
def heard_process_wide() -> Iterator[list[str]]:
    """Run a block; yield descriptions of what evaluations in it print, log, write, send, and open to write.

    Other threads go on printing and logging meanwhile, which is passed on and not noted. Threads of a backward pass are
    the evaluation's own; what they write and send is not noted, unless they open it.
    """
    found: list[str] = []
    thread = threading.get_ident()

    def note(what: str) -> None:
        if replaying() and (threading.get_ident() == thread or torch._C._current_graph_task_id() != -1):
            found.append(what)

    with (
        _replaced(sys, "stdout", lambda real: _Output(real, lambda: note("what is printed"))),
        _replaced(sys, "stderr", lambda real: _Output(real, lambda: note("what is printed"))),
        _replaced(builtins, "open", lambda real: _opening(real, note)),
        _replaced(io, "open", lambda real: _opening(real, note)),
        _records_noted(lambda: note("what is logged")),
        _calls_noted(note),
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


@contextlib.contextmanager
def _calls_noted(note: Callable[[str], None]) -> Iterator[None]:
    """Run a block in which this thread's calls of functions that write, send or start something are noted."""
    changes: dict[Any, int] = {}

    def called(frame: FrameType, event: str, function: Any) -> None:
        name = frame.f_code.co_name if event in ("call", "return") else function.__name__
        if name in _WRITE and event in ("call", "c_call"):
            owner = frame.f_locals.get("self") if event == "call" else function.__self__
            if _is_writer(owner) and not str(frame.f_globals.get("__name__")).startswith(_NOT_THE_LOSS):
                note(f"what os.{name} changes" if isinstance(owner, ModuleType) else name_of(owner))
        elif name in _EXECUTE and event in ("c_call", "c_return") and "sqlite3" in _homes_of(function.__self__):
            database = getattr(function.__self__, "connection", function.__self__)
            # Reading changes no row.
            if changes.setdefault(database, database.total_changes) != database.total_changes:
                note(name_of(database))

    if sys.getprofile() is not None:
        # There is room for one profiler, and the user has one.
        yield
        return
    sys.setprofile(called)
    try:
        yield
    finally:
        if sys.getprofile() is called:
            sys.setprofile(None)


def _is_writer(owner: Any) -> bool:
    """Say whether functions of an object may write outside of the process's memory, or hand something to others."""
    return not (_homes_of(owner).isdisjoint(_WRITERS) or isinstance(owner, (io.StringIO, io.BytesIO)))


def _homes_of(owner: Any) -> set[str]:
    """Return the name of a module, or those of the modules that an object's classes are from."""
    return {owner.__name__} if isinstance(owner, ModuleType) else {kind.__module__ for kind in type(owner).__mro__}
