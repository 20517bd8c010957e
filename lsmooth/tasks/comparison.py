"""Compare optimizers on a task: choose settings on held-out data, train on all of it with several seeds, test.

This is how the paper's Table 1 and Figures 2, 4 and 5 are made.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lsmooth import optim, tasks
from lsmooth.errors import InvalidArgumentError
from lsmooth.tasks.engines import Engine, RunResult, Tick
from lsmooth.tasks.plan import Plan
from lsmooth.tasks.results import Results
from lsmooth.tasks.task import LARGEST_FLOAT

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Contestant:
    """One line of the table: an optimizer, with or without clipping, and the settings it may choose from.

    Attributes:
        label: Its name in the table.
        candidates: Plans with settings from the grid, by a short text that tells them apart; a single one where there
            is no choice.
    """

    label: str
    candidates: Mapping[str, Plan]


def contestants(
    plans: Mapping[str, Plan],
    grid: Mapping[str, Sequence[str]] | None = None,
    clip: Sequence[float | None] | None = None,
) -> list[Contestant]:
    """Return the contestants: one for each optimizer and clipping threshold.

    Args:
        plans: A plan for each optimizer, with its default hyperparameters.
        grid: Values to choose from, by hyperparameter; a value like "x0.3" is a multiple of the plan's own.
            "OPTIMIZER:NAME" is for one optimizer alone, in place of what is said for all.
        clip: Gradient clipping: each optimizer takes part once with each of these `max_norm`; None in it is without.

    Raises:
        InvalidArgumentError: A hyperparameter is unknown, or a value is not of its type.
    """
    grid = grid or {}
    for key in grid:
        optimizer, colon, _ = key.partition(":")
        if colon and optimizer not in plans:
            raise InvalidArgumentError(f"--grid {key}=… is for {optimizer}, which is not compared.")
    found = []
    for optimizer, plan in plans.items():
        mine = {key: values for key, values in grid.items() if ":" not in key}
        mine |= {key.split(":")[1]: values for key, values in grid.items() if key.startswith(f"{optimizer}:")}
        variants = {optimizer: plan}
        if clip is not None:
            variants = {
                f"{optimizer}, no clipping" if max_norm is None else f"{optimizer}, max_norm {max_norm:g}": (
                    plan.with_hyperparameters({"max_norm": max_norm})
                )
                for max_norm in clip
            }
        for label, base in variants.items():
            candidates = {}
            for values in itertools.product(*mine.values()):
                pairs = {key: _value(base, key, value) for key, value in zip(mine, values, strict=True)}
                text = ", ".join(f"{key} {_short(value)}" for key, value in pairs.items())
                candidates[text] = base.with_hyperparameters(pairs)
            found.append(Contestant(label, candidates))
    return found


def _value(plan: Plan, key: str, text: str) -> Any:
    """Return a value of the grid; "x0.3" is a multiple of what the plan has, or else of the optimizer's default."""
    if not text.startswith("x"):
        return text
    # Looked up where `Plan.with_hyperparameters` will put it.
    of_optimizer = {**optim.hyperparameters(plan.optimizer), **plan.hyperparameters}
    own = plan.settings[key] if key in plan.settings else of_optimizer.get(key.removeprefix("optimizer."))
    try:
        value = float(own) * float(text[1:])  # type: ignore[arg-type]
        whole = isinstance(own, int)
        if abs(value) <= LARGEST_FLOAT and not isinstance(own, bool) and not (whole and value % 1):
            return int(value) if whole else value
    except (TypeError, ValueError):
        pass
    raise InvalidArgumentError(f"{key}={text} is no multiple of {plan.optimizer}'s {key} ({own}); give a value.")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Standing:
    """The results of a contestant.

    Attributes:
        label: Its label.
        chosen: The settings that were best on the held-out data; None where all of them diverged or failed.
        runs: Names of its final runs in the results, by seed.
        score: Final test metric of each run that did not diverge, by seed.
        diverged: Seeds that diverged.
        failed: Seeds (or settings, where none could be chosen) that failed, with the reason.
        clips: Whether the training loop clips its gradients (an optimizer that clips on its own does not count).
    """

    label: str
    chosen: str | None
    runs: Mapping[int, str]
    score: Mapping[int, float]
    diverged: Sequence[int]
    failed: Mapping[str, str]
    clips: bool = False


class Comparison:
    """A comparison under way.

    Args:
        entries: The contestants; see `contestants`.
        seeds: Seeds of the final runs; settings are chosen with the first of them.
        results: Where results are kept; runs that it holds already are not made again.
    """

    def __init__(self, entries: Sequence[Contestant], seeds: Sequence[int], results: Results) -> None:
        task = tasks.get(next(iter(entries[0].candidates.values())).task)
        self._entries = entries
        self._seeds = seeds
        self._results = results
        self._failed: dict[str, str] = {}
        self.metric = task.metric
        self._sign = -1.0 if task.higher_is_better else 1.0

    def search_jobs(self) -> dict[str, Plan]:
        """Return the runs among which settings are chosen, by name; none where there is no choice."""
        return {
            f"search | {entry.label} | {text}": dataclasses.replace(plan, seed=self._seeds[0], hold_out=True)
            for entry in self._entries
            if len(entry.candidates) > 1
            for text, plan in entry.candidates.items()
        }

    def final_jobs(self) -> dict[str, Plan]:
        """Return the runs with the chosen settings, on all training data, by name; search first."""
        jobs = {}
        for entry in self._entries:
            chosen = self._chosen(entry)
            if chosen is not None:
                for seed in self._seeds:
                    plan = dataclasses.replace(entry.candidates[chosen], seed=seed, hold_out=False)
                    jobs[_final_name(entry.label, chosen, seed)] = plan
        return jobs

    def make(
        self, jobs: Mapping[str, Plan], engine: Engine, tick: Tick, finished: Callable[[str, RunResult], None]
    ) -> None:
        """Make those runs that the results do not hold, and keep their results.

        A run that fails is not kept, so that a comparison that is continued tries it again.

        Raises:
            ResultsError: The results hold a run of this name with other settings.
            EngineError: Workers were lost again and again.
        """
        plans = {name: dataclasses.asdict(plan) for name, plan in jobs.items()}

        def keep(name: str, result: RunResult) -> None:
            if result.outcome == "failed":
                self._failed[name] = result.message
            else:
                self._results.add(name, plans[name], result)
            finished(name, result)

        missing = [(name, plans[name]) for name in self.missing(jobs)]
        if missing:
            engine.run(missing, tick, keep)

    def missing(self, jobs: Mapping[str, Plan]) -> list[str]:
        """Return the names of those runs that the results do not hold.

        Raises:
            ResultsError: The results hold a run of this name with other settings.
        """
        for name, plan in jobs.items():
            self._results.check(name, dataclasses.asdict(plan))
        return [name for name in jobs if name not in self._results]

    def standings(self) -> list[Standing]:
        """Return the results of all contestants, in their order."""
        found = []
        for entry in self._entries:
            chosen = self._chosen(entry)
            if chosen is None:
                failed = {
                    text: self._failed[name]
                    for text in entry.candidates
                    if (name := f"search | {entry.label} | {text}") in self._failed
                }
                found.append(Standing(entry.label, None, {}, {}, [], failed))
                continue
            names = {seed: _final_name(entry.label, chosen, seed) for seed in self._seeds}
            there = {seed: name for seed, name in names.items() if name in self._results}
            diverged = [seed for seed, name in there.items() if self._results[name].outcome == "diverged"]
            score = {
                seed: float(self._results[name].reports[-1]["metrics"][self.metric])
                for seed, name in there.items()
                if seed not in diverged
            }
            failed = {f"seed {seed}": self._failed[name] for seed, name in names.items() if name in self._failed}
            clips = entry.candidates[chosen].settings["max_norm"] is not None
            found.append(Standing(entry.label, chosen, there, score, diverged, failed, clips))
        return found

    def curves(self) -> pd.DataFrame:
        """Return the reports of the final runs: columns optimizer, seed, step, epoch, train_loss, …, and metrics."""
        return self._results.curves(
            {
                name: {"optimizer": standing.label, "seed": seed}
                for standing in self.standings()
                for seed, name in standing.runs.items()
            }
        )

    def _chosen(self, entry: Contestant) -> str | None:
        """Return the settings with the best final metric on the held-out data, the first of equals."""
        if len(entry.candidates) == 1:
            return next(iter(entry.candidates))
        best, chosen = math.inf, None
        for text in entry.candidates:
            name = f"search | {entry.label} | {text}"
            if name in self._results and self._results[name].outcome == "finished":
                value = self._sign * float(self._results[name].reports[-1]["metrics"][self.metric])
                if value < best:
                    best, chosen = value, text
        return chosen


def _final_name(label: str, chosen: str, seed: int) -> str:
    return f"final | {label} | {chosen} | seed {seed}"


def differences(standing: Standing, first: Standing) -> list[float]:
    """Return the final test metrics of a contestant minus those of the first, by seed; empty for the first itself."""
    if standing is first:
        return []
    return [score - first.score[seed] for seed, score in standing.score.items() if seed in first.score]


def mean_and_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean and the half-width of Student's interval, t s / sqrt(n): NaN for one value."""
    if not values:
        return math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    from scipy.stats import t

    width = t.ppf((1 + confidence) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, float(width)
