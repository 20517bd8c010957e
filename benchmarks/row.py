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
        unit: "x" for a ratio, "s", "bytes", "MB", "copies", "operations", "%".
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


@dataclass(frozen=True)
class Times:
    """What several functions took, timed in turn; `times[name]` is a median.

    Attributes:
        rounds: By name, the seconds of each round.
    """

    rounds: Mapping[str, list[float]]

    def __getitem__(self, name: str) -> float:
        """Return the median seconds of a function."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, against: str) -> float:
        """Return the median over rounds of one function's time over another's in the same round.

        A machine that others use, too, is slower at one time than at another: two things taken after one another meet
        the same of it, and two medians need not.
        """
        return statistics.median(a / b for a, b in zip(self.rounds[name], self.rounds[against], strict=True))


def interleaved(
    kinds: Mapping[str, Callable[[], object]],
    repeats: int = 7,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Time several functions in turn `repeats` times, every other round backwards, after one call each.

    What a function has started on a device is part of its time: `wait` waits for it.
    """
    rounds: dict[str, list[float]] = {name: [] for name in kinds}
    for function in kinds.values():
        function()
    order = list(kinds.items())
    for _ in range(repeats):
        for name, function in order:
            wait()
            start = clock()
            function()
            wait()
            rounds[name].append(clock() - start)
        order.reverse()
    return Times(rounds)
