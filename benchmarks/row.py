"""One figure of docs/performance.md, and how to time several things side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was measured, what it is held against, and what the rest is spent on.

    Attributes:
        name: `module.something`, stable from run to run.
        what: What a reader sees.
        value: The figure.
        unit: "x" for a ratio, "s", "bytes", "MB", "copies", "%".
        target: What is aimed at; None where the figure only informs.
        sense: "at most" or "at least".
        note: The floor, how far from it this is, and what the rest is spent on.
    """

    name: str
    what: str
    value: float
    unit: str
    target: float | None = None
    sense: str = "at most"
    note: str = ""

    def met(self) -> bool:
        """Say whether the target is reached, at the precision shown."""
        assert self.target is not None
        shown = float(f"{self.value:.3g}")
        return shown <= self.target if self.sense == "at most" else shown >= self.target

    def format(self, number: float) -> str:
        """Return a number with its unit."""
        text = f"{number:,.0f}" if abs(number) >= 100 else f"{number:#.3g}"
        return f"{text} {self.unit}"


def interleaved(
    kinds: Mapping[str, Callable[[], object]], repeats: int = 7, wait: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Return the median seconds of several functions, timed in turn `repeats` times after one call each.

    What a function has started on a device is part of its time: `wait` waits for it.
    """
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for function in kinds.values():
        function()
    for _ in range(repeats):
        for name, function in kinds.items():
            wait()
            start = time.perf_counter()
            function()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
