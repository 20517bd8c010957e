"""The critical learning rate of a step: how long the step may be before the loss is above f(x_t)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.join import Join
from lsmooth.measure.quantities import Point, Quantity
from lsmooth.measure.row import Row
from lsmooth.replay.evaluation import Replay

if TYPE_CHECKING:
    from lsmooth.loop.step import Step

# The search ends at this gamma if the loss has not risen until then, and after this many forward passes.
LARGEST_GAMMA = 1024.0
MOST_PASSES = 40
# The first rise is enclosed between two positions that differ by at most this share.
TOLERANCE = 0.01

# Takes this rank's numbers and how ranks join each; returns the joined numbers on the host, the same on every rank.
Agreed = Callable[[Tensor, Sequence[Join]], list[float]]


@dataclass(frozen=True)
class _Tried:
    """A position along the step.

    Attributes:
        gamma: The position.
        chord: (f(x_t + gamma d) - f(x_t)) / gamma, and ⟨g, d⟩ at gamma = 0.
    """

    gamma: float
    chord: float


def critical_gamma(
    loss_at: Callable[[float], float],
    start: float,
    slope: float,
    known: Sequence[tuple[float, float]] = (),
    eps: float = 0.0,
) -> float:
    """Return the first gamma at which f(x_t + gamma d) is above f(x_t), among the positions that are tried.

    Known positions are tried first. Then gamma is doubled until the loss is above f(x_t) by more than rounding. The
    rise is then enclosed to 1 %. The chord (f(x_t + gamma d) - f(x_t)) / gamma is taken as a line in gamma, and
    positions close to both sides of its zero are tried; bisection takes over where that line misleads. On a quadratic
    the chord is a line, and the answer 2 ⟨g, d⟩ / -⟨d, H d⟩ is exact up to rounding.

    Args:
        loss_at: Returns f(x_t + gamma d); one forward pass.
        start: f(x_t).
        slope: ⟨g, d⟩.
        known: Positions in (0, 1], each with the loss there.
        eps: Relative rounding error of a loss.

    Returns: The first gamma. It is 0 if ⟨g, d⟩ >= 0, so that the loss rises at once; infinity if the loss is not above
    f(x_t) up to gamma = 1024; NaN if loss or slope at x_t are not finite.

    Source: Kalra and Barkeshli 2023 (doubling, then bisection).
    """
    if not (math.isfinite(start) and math.isfinite(slope)):
        return math.nan
    if slope >= 0:
        return 0.0
    search = _Search(loss_at, start, 2 * eps * abs(start))
    low, high = search.bracket(_Tried(0.0, slope), [search.tried(gamma, loss) for gamma, loss in sorted(known)])
    if high is None:
        return math.inf
    low, high = search.narrowed(low, high)
    return min(high.gamma, max(low.gamma, _crossing(low, high)))


class _Search:
    """Looks for the first rise of a loss along a step.

    Args:
        loss_at: Returns f(x_t + gamma d); one forward pass.
        start: f(x_t).
        resolution: Rounding error of a loss.
    """

    def __init__(self, loss_at: Callable[[float], float], start: float, resolution: float) -> None:
        self._loss_at = loss_at
        self._start = start
        self._resolution = resolution
        self._passes = 0

    def tried(self, gamma: float, loss: float) -> _Tried:
        """Return a position whose loss is known."""
        return _Tried(gamma, (loss - self._start) / gamma)

    def bracket(self, low: _Tried, known: Sequence[_Tried]) -> tuple[_Tried, _Tried | None]:
        """Return the last position before the first rise and the first after it; the second is None without a rise."""
        for point in known:
            if self._above(point):
                return low, point
            low = point
        while (gamma := 2 * low.gamma or 1.0) <= LARGEST_GAMMA:
            point = self._at(gamma)
            if self._above(point):
                return low, point
            low = point
        return low, None

    def narrowed(self, low: _Tried, high: _Tried) -> tuple[_Tried, _Tried]:
        """Return positions on both sides of the rise that differ by at most the tolerance."""
        newest, misled = [low, high], 0
        while high.gamma - low.gamma > TOLERANCE * high.gamma and self._passes < MOST_PASSES:
            width, guess = high.gamma - low.gamma, _crossing(newest[0], newest[1])
            if not low.gamma < guess < high.gamma:
                guess = _crossing(low, high)
            tries = [guess * (1 - TOLERANCE / 3), guess * (1 + TOLERANCE / 3)]
            # After two lines in a row that did not halve the enclosing interval, bisect once.
            if misled == 2:
                tries, misled = [(low.gamma + high.gamma) / 2], 0
            for gamma in tries:
                point = self._at(gamma)
                newest = [newest[1], point]
                if low.gamma < gamma < high.gamma:
                    low, high = (low, point) if self._above(point) else (point, high)
            misled = misled + 1 if high.gamma - low.gamma > width / 2 else 0
        return low, high

    def _at(self, gamma: float) -> _Tried:
        self._passes += 1
        return self.tried(gamma, self._loss_at(gamma))

    def _above(self, point: _Tried) -> bool:
        # True for NaN too.
        return not point.chord * point.gamma <= self._resolution


def _crossing(one: _Tried, other: _Tried) -> float:
    """Return the zero of the line through two chords; the middle of their positions if the line does not rise."""
    rise, apart = other.chord - one.chord, other.gamma - one.gamma
    if not (math.isfinite(rise) and rise * apart > 0):
        return (one.gamma + other.gamma) / 2
    return one.gamma - one.chord * apart / rise


class CriticalRate(Quantity):
    """The first gamma, possibly beyond 1, at which the step's loss is above f(x_t); lr times it is the critical lr.

    The search decides on the host which position it tries next, and so waits for the device: once after the measured
    points, and once for each forward pass.

    Args:
        agreed: Joins numbers over the ranks and brings them to the host.
        alone: Whether there is one process, so that no other rank waits for this one after an error.
        eps: Relative rounding error of a loss.
        tell: Called with a sentence and the error if a loss cannot be evaluated without its gradient.
    """

    def __init__(self, agreed: Agreed, alone: bool, eps: float, tell: Callable[[str, Exception], None]) -> None:
        self._agreed = agreed
        self._alone = alone
        self._eps = eps
        self._tell = tell
        self._known: list[tuple[float, Tensor]] = []

    def at_start(self, step: Step, row: Row) -> None:
        self._known = []

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        if not point.is_check:
            self._known.append((point.gamma, loss))

    def further(self, replay: Replay, row: Row, step: Step) -> None:
        known, self._known = self._known, []
        losses = [row["loss"], *(loss for _, loss in known)]
        moved = row["step_norm"].sum()
        joins = [Join.SUM, Join.SUM, *[Join.MEAN] * len(losses)]
        slope, distance, start, *along = self._agreed(torch.stack([row["slope"], moved, *losses]), joins)
        if distance == 0:
            return

        def loss_at(gamma: float) -> float:
            return self._agreed(replay.loss_at(gamma).reshape(1), [Join.MEAN])[0]

        try:
            positions = [gamma for gamma, _ in known]
            found = critical_gamma(loss_at, start, slope, list(zip(positions, along, strict=True)), self._eps)
        except Exception as error:
            # Other ranks would wait for this one's losses.
            if not self._alone:
                raise
            self._tell(f"The critical learning rate of step {step.number} is left out", error)
            return
        row["critical_gamma"].fill_(found)

    def clear(self) -> None:
        self._known = []
