"""Runs a trace's writer on its own thread, so that a slow disk never delays a training step."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from lsmooth.trace import disk
from lsmooth.trace.writer import TraceWriter

# Most bytes that wait in memory for a stalled disk.
QUEUE_BYTES = 1 << 28


class BackgroundWriter:
    """Runs a `TraceWriter` on its own thread.

    If a block cannot be written (disk full, folder gone), the recording ends, but not the training. If the system
    refused the writer from the start, nothing is recorded. Blocks for a stalled disk wait in memory, up to
    `QUEUE_BYTES`; further blocks are dropped until the disk takes some again. `problems` reports each of these once.

    Args:
        writer: Writes the blocks.

    Attributes:
        failure: Why nothing more is written, in one sentence; None while blocks are written.
        closing: Whether `close` has been called.
    """

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._waiting = 0
        # Reentrant, since garbage collection may close a recorder at any point of the code.
        self._waiting_lock = threading.RLock()
        self._dropped: list[int] = []
        self._next_step: int | None = None
        self.closing = False
        self.failure = writer.refusal
        if self.failure is not None:
            self._problems.put(f"Nothing of this run is recorded, and training goes on: {self.failure}")
        self._thread = threading.Thread(target=self._run, name="lsmooth-writer", daemon=True)
        self._thread.start()
        _AT_WORK.add(self)

    @property
    def place(self) -> str:
        """The path of the file, with links resolved."""
        return os.path.realpath(self._writer.path)

    def put(self, block: Any, size: int = 0, steps: Sequence[int] = ()) -> None:
        """Queue a block, or drop it if too many bytes are waiting.

        Args:
            block: A function that returns the arguments of `TraceWriter.append`; it is called on the writer's thread.
            size: Bytes that the block keeps in memory until then.
            steps: Indices of the optimizer steps in the block.
        """
        if self.failure is not None:
            return
        with self._waiting_lock:
            full = self._waiting > 0 and self._waiting + size > QUEUE_BYTES
            if not full:
                self._waiting += size
        if full:
            if not self._dropped:
                self._problems.put(
                    f"{self._writer.path}: the disk has not taken the {QUEUE_BYTES / 1e6:.0f} MB of measurements that "
                    f"wait for it, and those from step {steps[0]} on are dropped until it does; training goes on."
                )
            self._dropped += steps
            return
        self._tell_dropped()
        self._queue.put((block, size))

    def problems(self) -> list[str]:
        """Return the problems since the last call, one sentence each; empty while all is well."""
        return [self._problems.get() for _ in range(self._problems.qsize())]

    def wait(self) -> None:
        """Return when all queued blocks are in the file."""
        done = threading.Event()
        self._queue.put((done, 0))
        # A forked process does not have the thread.
        while self._thread.is_alive() and not done.wait(1.0):
            pass

    def close(self, next_step: int | None = None, *, wait: bool = True) -> None:
        """Write the queued blocks and close the file; see `TraceWriter.close`. Without `wait`, return at once."""
        self._next_step = next_step
        self.closing = True
        self._queue.put((None, 0))
        if not wait:
            return
        self._thread.join()
        self._tell_dropped()

    def join(self) -> None:
        """Return when the thread has ended."""
        self._thread.join()

    def _tell_dropped(self) -> None:
        dropped, self._dropped = self._dropped, []
        if dropped:
            self._problems.put(
                f"{self._writer.path} lacks {len(dropped)} measured steps, {dropped[0]} to {dropped[-1]}, which came "
                "while the disk took nothing."
            )

    def _run(self) -> None:
        while True:
            block, size = self._queue.get()
            if isinstance(block, threading.Event):
                block.set()
                continue
            try:
                if block is None:
                    self._writer.close(self._next_step)
                    return
                if self.failure is None:
                    self._writer.append(*block())
            except Exception as error:
                self._fail(error)
                if block is None:
                    return
            finally:
                # Otherwise this block would be kept alive while the next one is waited for.
                block = None
                with self._waiting_lock:
                    self._waiting -= size

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            failure = f"{self._writer.path} cannot be written any more ({disk.reason(error)})"
            self._problems.put(
                f"{failure}: measurements from here on are not recorded, training goes on, and what was written stays "
                "readable."
            )
            self.failure = f"{failure}."


_AT_WORK: weakref.WeakSet[BackgroundWriter] = weakref.WeakSet()


def wait_for_closed_writers(path: str) -> None:
    """Wait for the closing writers of this process at a path."""
    place = os.path.realpath(path)
    for writer in list(_AT_WORK):
        if writer.place == place and writer.closing:
            writer.join()


@atexit.register
def _wait_for_all_closed_writers() -> None:
    """Wait for all closing writers at exit.

    Otherwise Python would end their threads anywhere, possibly while they hold h5py's lock, and the process would wait
    for that lock forever.
    """
    for writer in list(_AT_WORK):
        if writer.closing:
            writer.join()
