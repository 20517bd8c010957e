"""Confidence intervals of the constants of a line, whose cloud is a sample of correlated steps.

Least squares, expectile and quantile lines behave like averages: blocks of neighbouring steps are resampled, and the
line is fitted to each resample. (Trends have intervals in closed form: `lsmooth.fit.sandwich`.) The envelope depends on
a few extreme points, for which resampling is inconsistent: the highest point of a resample is the cloud's own with
probability 0.63. Its interval is simulated from the distribution of the points' distances to the envelope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lsmooth.fit.envelopes import envelopes
from lsmooth.fit.lines import Floats, Lines
from lsmooth.fit.quantiles import quantiles
from lsmooth.fit.resampling import block_lengths
from lsmooth.fit.squares import bounded_lines, expectiles

# Most points in a resample; deviations of resamples of larger clouds are scaled by the square root of the ratio.
MOST_RESAMPLED = 5_000
# Numbers held at a time: few enough for the processor's cache.
_CHUNK = 1 << 17
# Beyond this tail index of the distances, a distant bound cannot be told from no bound: the normal distribution, which
# has no bound, has an index of 5 to 10 on samples of a thousand.
MOST_TAIL_INDEX = 3.0
# Fewest points from which the distribution of distances to the envelope is estimated.
FEWEST_FOR_ENVELOPE = 40
_ROUNDS = 3


@dataclass(frozen=True)
class Interval:
    """Ends of the intervals of (L0, L1), (2,) each, NaN if there is none, and the reason for that."""

    low: Floats
    high: Floats
    reason: str = ""


def squares_interval(
    x: Floats, y: Floats, line: Floats, *, confidence: float, resamples: int, generator: np.random.Generator
) -> Interval:
    """Return the interval of a least squares line; see `_resampled_interval`."""
    drawn = _Drawing(x, y, confidence, resamples, generator)
    return _resampled_interval(drawn, line, y - line[0] - line[1] * x, _resampled_squares)


def expectile_interval(
    x: Floats, y: Floats, line: Floats, tau: float, *, confidence: float, resamples: int, generator: np.random.Generator
) -> Interval:
    """Return the interval of an expectile; see `_resampled_interval`."""
    drawn = _Drawing(x, y, confidence, resamples, generator)
    residual = y - line[0] - line[1] * x
    pull = np.where(residual > 0, tau, 1 - tau) * residual
    return _resampled_interval(drawn, line, pull, partial(_refitted, lambda x, y: expectiles(x, y, tau)))


def quantile_interval(
    x: Floats, y: Floats, line: Floats, q: float, *, confidence: float, resamples: int, generator: np.random.Generator
) -> Interval:
    """Return the interval of a quantile line; see `_resampled_interval`."""
    drawn = _Drawing(x, y, confidence, resamples, generator)
    pull = np.where(y - line[0] - line[1] * x > 0, q, q - 1)
    return _resampled_interval(drawn, line, pull, partial(_refitted, lambda x, y: quantiles(x, y, q)))


@dataclass(frozen=True)
class _Drawing:
    """A cloud, x and y in the order of steps, (n,), with confidence, number of resamples, and random generator."""

    x: Floats
    y: Floats
    confidence: float
    resamples: int
    generator: np.random.Generator


def _resampled_interval(
    drawing: _Drawing,
    line: Floats,
    pull: Floats,
    lines_of: Callable[[Floats, Floats, int, NDArray[np.int64]], Floats],
) -> Interval:
    """Return intervals of a line that behaves like an average, by circular moving blocks over steps.

    Blocks start at any step, and continue from the last step to the first, so that early and late steps count as often
    as others. The automatic choice of Politis and White (2004) gives a block length for the influence values of L0 and
    of L1 (how much each point moves the constant). One and a half times the longer one is used: their choice is best
    for a variance, and intervals need longer blocks. Percentiles of the deviations are then widened by two factors. One
    is the ratio of a studentized interval of the mean influence to its percentile interval, since blocks are few and
    their spread is itself uncertain. The other is the ratio of the standard error with all autocovariances to that with
    the autocovariances inside a block.

    Args:
        drawing: The cloud, and how it is resampled.
        line: L0 and L1 fitted to the cloud, (2,).
        pull: Derivative of the fitted loss at each point's residual, (n,).
        lines_of: Fits the lines of resamples, (resamples, 2), from x, y, block length and starts of blocks.
    """
    x, y, n = drawing.x, drawing.y, len(drawing.x)
    influence = _influence(x, pull)
    lengths, variances = block_lengths(influence)
    length = int(np.clip(round(1.5 * lengths.max()), 1, n // 3))
    sums = _circular_sums(influence, length)
    blocks = -(-min(n, MOST_RESAMPLED) // length)
    starts = drawing.generator.integers(0, n, (drawing.resamples, blocks))
    deviations = (lines_of(x, y, length, starts) - line) * np.sqrt(blocks * length / n)
    tail = (1 - drawing.confidence) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail], axis=0)
    wider = _widening(variances, sums, starts, length, drawing.confidence)
    return Interval(np.maximum(line + wider * np.minimum(low, 0), 0), line + wider * np.maximum(high, 0))


def _influence(x: Floats, pull: Floats) -> Floats:
    """Return how much each point moves L0 and L1, up to a common factor, centred, (2, n)."""
    centred = x - x.mean()
    spread = np.mean(centred**2)
    # With a power of 0 all points have the same x, and only the level moves.
    on_slope = pull * centred / spread if spread > 0 else np.zeros_like(x)
    influence = np.array([pull - on_slope * x.mean(), on_slope])
    return influence - influence.mean(axis=1, keepdims=True)


def _circular_sums(values: Floats, length: int) -> Floats:
    """Return sums over the blocks of `length` that start at each position, running on at the end, (p, n)."""
    n = values.shape[1]
    running = np.cumsum(np.concatenate([np.zeros((len(values), 1)), values, values[:, :length]], axis=1), axis=1)
    return (running[:, length:] - running[:, :-length])[:, :n]


def drawn_sums(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """Return the sum of `values` (n,) at each row of positions (resamples, blocks), (resamples,)."""
    resamples, blocks = starts.shape
    rows = max(1, _CHUNK // blocks)
    sums = np.empty(resamples)
    for first in range(0, resamples, rows):
        sums[first : first + rows] = values.take(starts[first : first + rows]).sum(axis=1)
    return sums


def _resampled_squares(x: Floats, y: Floats, length: int, starts: NDArray[np.int64]) -> Floats:
    """Return the least squares line of each resample, (resamples, 2), from sums over its blocks."""
    middle = x.mean()
    offset = x - middle
    sums = _circular_sums(np.array([offset, y, offset**2, offset * y]), length)
    count = starts.shape[1] * length
    first, height, square, product = (drawn_sums(values, starts) / count for values in sums)
    spread = np.maximum(square - first**2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(spread > 0, (product - first * height) / spread, 0.0)
    through_origin = (product + middle * height) / (square + 2 * middle * first + middle**2)
    return np.column_stack(bounded_lines(slope, middle + first, height, lambda: through_origin))


def _refitted(
    lines: Callable[[Floats, Floats], Lines], x: Floats, y: Floats, length: int, starts: NDArray[np.int64]
) -> Floats:
    """Return the line of each resample, fitted to its points, (resamples, 2)."""
    resamples, blocks = starts.shape
    rows = max(1, _CHUNK // (blocks * length))
    found = np.empty((resamples, 2))
    for first in range(0, resamples, rows):
        chosen = starts[first : first + rows]
        positions = ((chosen[:, :, None] + np.arange(length)) % len(x)).reshape(len(chosen), -1)
        found[first : first + rows] = np.column_stack(lines(x[positions], y[positions]))
    return found


def _widening(variances: Floats, sums: Floats, starts: NDArray[np.int64], length: int, confidence: float) -> Floats:
    """Return the factors, at least 1, by which the intervals of L0 and L1 are widened, (2,)."""
    blocks = starts.shape[1]
    error = np.sqrt(np.mean(sums**2, axis=1) / (length * blocks * length))
    # Influences are centred, so that sums of squares give the variance of a resample.
    means = np.array([drawn_sums(row, starts) for row in sums]) / blocks
    squares = np.array([drawn_sums(row, starts) for row in sums**2]) / blocks
    errors = np.sqrt(np.maximum(squares - means**2, 0) / (blocks - 1)) / length
    means /= length
    with np.errstate(invalid="ignore", divide="ignore"):
        studentized = np.quantile(np.abs(means) / errors, confidence, axis=1) * error
        plain = np.quantile(np.abs(means), confidence, axis=1)
        few_blocks = studentized / plain
        beyond_blocks = np.sqrt(variances / (np.mean(sums**2, axis=1) / length))
    return np.fmax(few_blocks, 1) * np.fmax(beyond_blocks, 1)


def envelope_interval(
    x: Floats,
    y: Floats,
    line: Floats,
    *,
    confidence: float,
    resamples: int,
    generator: np.random.Generator,
) -> Interval:
    """Return intervals of the line above which the distribution of the points has none, the true envelope.

    With U the envelope, the relative distances w = 1 - y / U(x) of the points nearest to it follow a power law near
    zero, P(w < t) = (t / c)^kappa. kappa and c are estimated from the sqrt(n) nearest points (Hill's estimator).
    Extreme points may come in clusters of neighbouring steps; the share of independent ones is estimated from the
    intervals between the nearest points (the extremal index: Ferro and Segers, "Inference for clusters of extreme
    values", JRSS B 2003). Clouds of such points are then drawn below the line at the cloud's own gradient norms, and
    the envelope of each is fitted. Percentiles of its deviation from the line give the interval, which is widened to
    contain the estimate. Since a fitted envelope lies too low, the line to draw below is first raised by the median
    deviation, and everything is estimated again. (Chernozhukov and Fernández-Val, Review of Economic Studies 2011,
    simulate extremes of regressions in this way.) Distances are assumed to have the same distribution at all gradient
    norms.

    Args:
        x: Gradient norms in the order of steps, (n,).
        y: Smoothness, (n,).
        line: L0 and L1 of the envelope, (2,).
        confidence: Confidence of the intervals, between 0 and 1.
        resamples: Number of clouds to draw.
        generator: Source of random numbers.
    """
    n = len(x)
    none = np.full(2, np.nan)
    if n < FEWEST_FOR_ENVELOPE:
        return Interval(none, none, f"no interval for the envelope below {FEWEST_FOR_ENVELOPE} points")
    nearest = max(20, int(np.sqrt(n)))
    assumed = line
    deviations = np.zeros((resamples, 2))
    for turn in range(_ROUNDS):
        bound = assumed[0] + assumed[1] * x
        with np.errstate(invalid="ignore", divide="ignore"):
            distance = np.where(bound > 0, 1 - y / bound, np.inf)
        order = np.argsort(distance)[: nearest + 1]
        farthest = distance[order[-1]]
        if not farthest > 1e-9:
            # This many points lie on the line itself, which is therefore known.
            return Interval(line, line)
        # The fitted envelope touches two points, and is too close to the next ones.
        index = tail_index(distance[order], skipped=4 if turn == 0 else 2)
        if index > MOST_TAIL_INDEX:
            return Interval(none, none, "no interval for the envelope: no bound in sight")
        if turn == 0:
            share = extremal_index(np.sort(order[: max(15, nearest // 3)]))
        deviations = _drawn_envelopes(x, assumed, index, farthest, nearest, share, resamples, generator) - assumed
        if turn < _ROUNDS - 1:
            assumed = np.maximum(line - np.median(deviations, axis=0), 0)
            bound = assumed[0] + assumed[1] * x
            assumed = assumed * max(1.0, (y[bound > 0] / bound[bound > 0]).max())
    tail = (1 - confidence) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail], axis=0)
    return Interval(np.maximum(np.minimum(line - high, line), 0), np.maximum(line - low, line))


def tail_index(distances: Floats, skipped: int) -> float:
    """Return Hill's estimate of kappa in P(w < t) ~ t^kappa from the nearest distances in ascending order.

    The first `skipped` distances are replaced by the next one.
    """
    farthest = distances[-1]
    inner = np.maximum(distances[skipped:-1], 1e-12 * farthest)
    logs = np.log(farthest / inner)
    return float((len(distances) - 1) / (logs.sum() + skipped * logs[0]))


def extremal_index(positions: NDArray[np.intp]) -> float:
    """Return the share of independent extreme points, from their positions in time.

    The intervals estimator of Ferro and Segers (2003), equation 5: 1 for independent steps, 1 / (mean cluster size)
    where extremes come in clusters.
    """
    times = np.diff(positions).astype(np.float64)
    if times.max() <= 2:
        value = 2 * times.sum() ** 2 / (len(times) * (times**2).sum())
    else:
        value = 2 * (times - 1).sum() ** 2 / (len(times) * ((times - 1) * (times - 2)).sum())
    return float(min(1.0, value))


def _drawn_envelopes(
    x: Floats,
    assumed: Floats,
    index: float,
    farthest: float,
    nearest: int,
    share: float,
    resamples: int,
    generator: np.random.Generator,
) -> Floats:
    """Return envelopes of clouds drawn below a line, (resamples, 2); only the points nearest to it are drawn."""
    n = len(x)
    # Four times as many as were used for the estimate; farther points do not reach the envelope.
    expected = min(4 * nearest, n)
    count = max(2, round(expected * share))
    at = x[generator.integers(0, n, (resamples, count))]
    distance = farthest * (generator.random((resamples, count)) * (expected / nearest)) ** (1 / index)
    height = (assumed[0] + assumed[1] * at) * (1 - np.minimum(distance, 1))
    return np.column_stack(envelopes(at, height, mean=np.full(resamples, x.mean())))
