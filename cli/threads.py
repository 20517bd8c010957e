"""OpenMP settings of the training commands, so that they share the machine with other programs."""

from __future__ import annotations

import os


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait for each other; call it before torch is imported.

    By default they spin. Where other programs want the cores too, a spinning thread takes the core from the very thread
    that it waits for. Beside six busy processes on two cores, a step of the demo took 2.4 s with spinning and 0.44 s
    with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
