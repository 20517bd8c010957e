"""`estimate`: L0 and L1 of every group of a trace, and how well each line describes its cloud."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.fit.batches import batches, chosen_cloud, left_out
from lsmooth.fit.conditions import Condition, against_loss, best_powers, known_condition
from lsmooth.fit.densities import estimate_densities
from lsmooth.fit.lines import Floats, Lines
from lsmooth.fit.methods import Method, known_methods
from lsmooth.fit.quantiles import check_quantile
from lsmooth.fit.ranks import spearman
from lsmooth.fit.squares import check_tau
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement, Trace, check_trace

_MOST_THREADS = 8


def estimate(
    trace: Trace | Cloud,
    by: By = "global",
    *,
    method: str | Sequence[str] = ("trend", "envelope"),
    condition: str = "linear",
    norm: str = "l2",
    displacement: Displacement = "layer",
    endpoint: bool = False,
    q: float = 0.95,
    tau: float = 0.9,
    confidence: float | None = 0.9,
    seed: int = 0,
    f_low: float | None = None,
) -> pd.DataFrame:
    """Return L0 and L1 of each group of parameters: smoothness <= L0 + L1 grad_norm.

    Args:
        trace: An open trace, or a `Cloud`; with a cloud, the arguments of `Trace.cloud` have no effect.
        by: As for `Trace.cloud`, or "density": all coordinates of each tensor, recorded with `densities=True`.
        method: Name or names of the lines to fit, of `lsmooth.fit.methods.METHODS`.
        condition: "linear", "power" (smoothness <= L0 + Lrho grad_norm^rho, rho in [0, 2]) or "suboptimality"
            (smoothness <= H0 + H1 (loss - f_low)).
        norm: As for `Trace.cloud`.
        displacement: As for `Trace.cloud`.
        endpoint: As for `Trace.cloud`.
        q: Share of the points below the line of method "quantile".
        tau: Weight of points above the line of method "expectile".
        confidence: Confidence of the intervals, between 0 and 1; None for no intervals (much faster).
        seed: Seed of the random numbers for the intervals.
        f_low: For "suboptimality", a lower bound of the loss; by default the lowest loss of a well measured step.

    Returns: One row for each group and method: `group`, `method`; `L0`, `L1` and their intervals `L0_low` to `L1_high`
    (NaN if there is none), for "power" also `rho` and `Lrho` in place of `L1`, for "suboptimality" `f_low`, `H0` and
    `H1` instead; `spearman`, the rank correlation; `coverage`, the share of points not above the line; `points` and
    `left_out`, the numbers of points in the fit and left out; `reason`, why points, numbers or intervals are missing.

    Raises:
        InvalidArgumentError: There is no such method or condition, q, tau or confidence is out of range, the
            seed is negative, f_low is no lower bound, or an error of `Trace.cloud`.
        TraceError: The trace lacks what is asked for, or is damaged.
    """
    question = Question(known_methods(method), known_condition(condition), q, tau, confidence, seed, f_low)
    if isinstance(by, str) and by == "density":
        trace = _with_densities(trace, condition, norm, displacement, endpoint)
        return estimate_densities(trace, [(method, question.share(method)) for method in question.methods])
    return _fitted(chosen_cloud(trace, by, norm, displacement, endpoint), question)


@dataclass(frozen=True)
class Question:
    """The checked arguments of `estimate` that apply to every group.

    Raises:
        InvalidArgumentError: q, tau or confidence is out of range, seed is negative, or f_low is given for
            another condition.
    """

    methods: tuple[Method, ...]
    condition: Condition
    q: float
    tau: float
    confidence: float | None
    seed: int
    f_low: float | None

    def __post_init__(self) -> None:
        check_quantile(self.q)
        check_tau(self.tau)
        if self.f_low is not None and self.condition.name != "suboptimality":
            raise InvalidArgumentError(
                f"f_low belongs to condition='suboptimality', not to {self.condition.name!r}; leave it out."
            )
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise InvalidArgumentError(
                f"confidence={self.confidence!r} is no share; give a number between 0 and 1, such as 0.9."
            )
        if self.seed < 0:
            raise InvalidArgumentError(f"seed={self.seed!r} is negative; give 0 or a positive integer.")

    def share(self, method: Method) -> float:
        """Return the argument that a method depends on; NaN if it depends on none."""
        return {"q": self.q, "tau": self.tau}.get(method.share, float("nan"))


def _with_densities(
    trace: Trace | Cloud, condition: str, norm: str, displacement: Displacement, endpoint: bool
) -> Trace:
    """Return the trace whose densities are fitted; raise InvalidArgumentError for arguments that need more."""
    if isinstance(trace, Cloud):
        raise InvalidArgumentError("by='density' needs the trace, not a cloud of it; give lsmooth.Trace(path).")
    check_trace(trace)
    if condition != "linear" or norm != "l2" or displacement != "layer" or endpoint:
        raise InvalidArgumentError(
            "by='density' has only each coordinate's gradient and own displacement; leave condition, norm, "
            "displacement and endpoint at their defaults."
        )
    return trace


def _fitted(cloud: Cloud, question: Question) -> pd.DataFrame:
    """Return the rows of `estimate`; batches of groups are fitted in threads."""
    if question.condition.name == "suboptimality":
        cloud, f_low = against_loss(cloud, question.f_low)
        question = replace(question, f_low=f_low)
    answers = _Answers(len(cloud.groups), question)
    refusals: dict[int, str] = {}
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        batched = batches(cloud, question.condition.against, refusals)
        for done in [pool.submit(answers.fit, *batch) for batch in batched]:
            done.result()
    methods, points = question.methods, cloud.usable.sum(axis=0)
    reasons = []
    for group, missing in enumerate(left_out(cloud)):
        zeros = f"{answers.zeros[group]} points have smoothness 0" if answers.zeros[group] else ""
        for column in range(len(methods)):
            parts = (refusals.get(group, ""), missing, zeros, answers.notes.get((group, column), ""))
            reasons.append("; ".join(part for part in parts if part))
    return pd.DataFrame(
        {
            "group": np.repeat(np.array(cloud.groups, dtype=object), len(methods)),
            "method": np.tile(np.array([method.name for method in methods], dtype=object), len(cloud.groups)),
            **{column: values.ravel() for column, values in answers.numbers.items()},
            "points": np.repeat(points, len(methods)),
            "left_out": np.repeat(len(cloud.steps) - points, len(methods)),
            "reason": reasons,
        }
    )


class _Answers:
    """The numbers of all groups and methods, (m, methods) each, filled batch by batch.

    Attributes:
        numbers: Values by column of `estimate`; NaN where missing.
        zeros: Number of points with a smoothness of 0 in each group, (m,).
        notes: Why an interval is missing, by group and method.
    """

    def __init__(self, groups: int, question: Question) -> None:
        self.question = question
        constants = question.condition.constants
        ends = [f"{constant}{end}" for constant in constants for end in ("_low", "_high")]
        columns = [*question.condition.extra, *constants, *ends, "spearman", "coverage"]
        self.numbers = {column: np.full((groups, len(question.methods)), np.nan) for column in columns}
        self.zeros = np.zeros(groups, dtype=np.int64)
        self.notes: dict[tuple[int, int], str] = {}

    def fit(self, members: NDArray[np.intp], x: Floats, y: Floats) -> None:
        """Fit groups, whose points are the rows of x and y, (m, n), which are scaled in place."""
        unit_x, unit_y = x.max(axis=1), y.max(axis=1)
        unit_y[unit_y == 0] = 1.0
        x /= unit_x[:, None]
        y /= unit_y[:, None]
        self.numbers["spearman"][members] = spearman(x, y)[:, None]
        self.zeros[members] = (y == 0).sum(axis=1)
        if self.question.condition.name == "suboptimality":
            self.numbers["f_low"][members] = self.question.f_low
        for column, method in enumerate(self.question.methods):
            at, unit_at = x, unit_x
            if self.question.condition.name == "power":
                share = self.question.share(method)
                rho = best_powers(x, y, partial(_lines_at, method, share), method.misfit(share))
                at, unit_at = x ** rho[:, None], unit_x**rho
                self.numbers["rho"][members, column] = rho
            self._lay(method, column, members, at, y, np.array([unit_y, unit_y / unit_at]))

    def _lay(self, method: Method, column: int, members: NDArray[np.intp], x: Floats, y: Floats, units: Floats) -> None:
        """Fit a method's lines to groups, and store constants and intervals in `units`, (2, m)."""
        question = self.question
        share = question.share(method)
        lines = np.array(method.lines(x, y, share))
        self.numbers["coverage"][members, column] = _coverage(x, y, *lines)
        low, high = np.full(lines.shape, np.nan), np.full(lines.shape, np.nan)
        if question.confidence is not None:
            seeds = [[question.seed, int(member), column] for member in members]
            low, high, reasons = method.intervals(x, y, lines, share, question.confidence, seeds)
            self.notes.update({(int(member), column): reason for member, reason in zip(members, reasons, strict=True)})
        for position, constant in enumerate(question.condition.constants):
            for end, values in (("", lines), ("_low", low), ("_high", high)):
                self.numbers[constant + end][members, column] = values[position] * units[position]


def _lines_at(method: Method, share: float, x: Floats, y: Floats) -> Lines:
    return method.fitted(x, y, share)


def _coverage(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the share of points on or below each row's line, up to a rounding error of the largest value."""
    return np.mean(y <= level[:, None] + slope[:, None] * x + 1e-12, axis=1)
