"""Training runs in processes of their own, for tests that watch, kill and resume them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rows import NETWORK, header, rows, write_rows
from small_run import train

from lsmooth.measure import handover
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


class Trainer:
    """The parent that forks training runs; one run at a time."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(Path(__file__).with_name("trainer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(self, **arguments):
        self._process.stdin.write(
            json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in arguments.items()})
        )
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self):
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(60) == 0


@pytest.fixture
def path(tmp_path):
    """Where a test may write a trace."""
    return tmp_path / "run.h5"


@pytest.fixture(scope="session")
def trace(tmp_path_factory):
    """A trace of `rows.NETWORK` as a killed run leaves it: 41 steps, the fourth of them not measured well."""
    made = header(parameters=NETWORK)
    path = tmp_path_factory.mktemp("network") / "run.h5"
    writer = TraceWriter(path, made)
    numbers = rows(made, 0, CHUNK_STEPS + 9)
    numbers["status"][3] = 2
    # One tensor stands still at one step.
    numbers["step_norm"][5, 1] = 0
    writer.append(numbers)
    writer.abandon()
    return Trace(path)


@pytest.fixture(params=["close", "abandon"])
def full_trace(request, path):
    """Path of a trace with every norm and with densities, of two chunks, closed or left by a killed run."""
    write_rows(path, 2 * CHUNK_STEPS, end=request.param, norms=("linf", "spectral"), densities=True)
    return path


@pytest.fixture(scope="session")
def trainer():
    trainer = Trainer()
    yield trainer
    trainer.close()


@pytest.fixture(scope="session")
def unwatched():
    """What two hundred steps of `small_run.train` come to without a recorder."""
    return train(None, 200, record=False)


@pytest.fixture
def flushing(monkeypatch):
    """Every step is flushed by itself."""
    monkeypatch.setattr(handover, "BLOCK_ROWS", 1)
