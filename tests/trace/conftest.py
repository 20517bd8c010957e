"""Training runs in processes of their own, for tests that watch, kill and resume them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import train

from lsmooth.measure import handover


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
