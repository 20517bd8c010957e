"""Threads that wait for each other sleep, and do not take the core from other programs."""

import os
import subprocess
import sys

import pytest

from lsmooth.cli.threads import wait_without_spinning


def test_threads_wait_without_spinning_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("command", [["demo", "--steps", "2"], ["train", "transformer-encoder", "--steps", "1"]])
def test_that_is_said_before_torch_starts_its_threads(command, tmp_path):
    """OpenMP reads the variable when it is loaded: a program that stops at that import shows what it would read."""
    program = (
        "import os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('OMP_WAIT_POLICY'))\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from lsmooth.cli import main\n"
        "main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-u", "-c", program, *command], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "PASSIVE\n"
