"""Comparisons: who takes part, how settings are chosen, what is kept, and what is said of runs that go wrong."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from lsmooth.errors import InvalidArgumentError
from lsmooth.tasks.comparison import Comparison, contestants, mean_and_interval
from lsmooth.tasks.engines import Moment, RunResult
from lsmooth.tasks.plan import make_plan
from lsmooth.tasks.results import Results

TASK = "transformer-encoder"


@pytest.fixture(scope="module")
def plans():
    found = {}
    for name, lr in (("sgd", 2.0), ("generalized-signsgd", 1e-3)):
        found[name], _ = make_plan(TASK, optimizer=name, changes={"lr": lr})
    return found


class MadeUp:
    """An engine whose runs come to what a function of name and plan says."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.made = []

    def run(self, jobs, tick, finished):
        for name, plan in jobs:
            self.made.append(name)
            tick(name, Moment(1, 10, 0.5, 0.1))
            finished(name, self.outcome(name, SimpleNamespace(**plan)))


def result(value, outcome="finished"):
    reports = [
        {
            "step": step,
            "epoch": step / 10,
            "train_loss": value + 1 / step,
            "clipped": 1,
            "steps": 5,
            "metrics": {"loss": value, "perplexity": value + 10 / step},
            "seconds": 0.5 * step,
        }
        for step in (5, 10)
    ]
    return RunResult(outcome, reports)


def compare(entries, seeds, results, outcome):
    comparison = Comparison(entries, seeds, results)
    engine = MadeUp(outcome)
    for jobs in (comparison.search_jobs, comparison.final_jobs):
        comparison.make(jobs(), engine, lambda name, step: None, lambda name, result: None)
    return comparison, engine


def test_the_grid_is_every_combination(plans):
    sgd, sign = contestants(plans, {"lr": ["x0.5", "x2"], "generalized-signsgd:eps": ["1e-8", "0"], "dropout": ["0"]})
    assert sorted(plan.hyperparameters["lr"] for plan in sgd.candidates.values()) == [1.0, 4.0]
    assert sorted((p.hyperparameters["lr"], p.hyperparameters["eps"]) for p in sign.candidates.values()) == [
        (5e-4, 0.0),
        (5e-4, 1e-8),
        (2e-3, 0.0),
        (2e-3, 1e-8),
    ]
    assert all(plan.settings["dropout"] == 0.0 for plan in sgd.candidates.values())


def test_a_multiple_is_of_the_tasks_value_or_else_of_the_optimizers_default():
    # The task has no lr for adam, and a threshold of its own beside the optimizer's.
    changes = {"max_norm": 4.0, "optimizer.max_norm": 10.0}
    adam, clip = (
        make_plan("transformer-encoder", optimizer=name, changes=changed)[0]
        for name, changed in (("adam", {}), ("sgd-clip-grad", changes))
    )
    (found,) = contestants({"adam": adam}, {"lr": ["x0.5"]})
    assert [plan.hyperparameters["lr"] for plan in found.candidates.values()] == [0.5e-3]
    for key, expected in (("max_norm", (2.0, 10.0)), ("optimizer.max_norm", (4.0, 5.0))):
        (found,) = contestants({"sgd-clip-grad": clip}, {key: ["x0.5"]})
        (plan,) = found.candidates.values()
        assert (plan.settings["max_norm"], plan.hyperparameters["max_norm"]) == expected


def test_what_is_said_for_one_optimizer_replaces_what_is_said_for_all(plans):
    sgd, sign = contestants(plans, {"lr": ["0.1", "0.2"], "sgd:lr": ["7"]})
    assert [plan.hyperparameters["lr"] for plan in sgd.candidates.values()] == [7.0]
    assert [plan.hyperparameters["lr"] for plan in sign.candidates.values()] == [0.1, 0.2]


def test_clipping_makes_contestants_of_its_own(plans):
    entries = contestants({"sgd": plans["sgd"]}, clip=[0.25, None])
    assert [entry.label for entry in entries] == ["sgd, max_norm 0.25", "sgd, no clipping"]
    assert [entry.candidates[""].settings["max_norm"] for entry in entries] == [0.25, None]


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ({"adam:lr": ["1"]}, "adam, which is not compared"),
        ({"lrr": ["1"]}, "did you mean lr"),
        ({"lr": ["fast"]}, "cannot be read as float"),
        ({"lr": ["xfast"]}, "no multiple"),
    ],
)
def test_a_grid_that_cannot_be(plans, grid, sentence):
    with pytest.raises(InvalidArgumentError, match=sentence):
        contestants(plans, grid)


def test_settings_are_chosen_on_held_out_data_and_trained_on_all(plans, tmp_path):
    entries = contestants(plans, {"lr": ["x0.5", "x1", "x2"]})

    def outcome(name, plan):
        if plan.hold_out:
            assert plan.seed == 3
            # Best: sgd in the middle, generalized-signsgd at the largest lr, whose smallest diverges.
            if plan.optimizer == "sgd":
                return result(abs(plan.hyperparameters["lr"] - 2.0))
            lr = plan.hyperparameters["lr"]
            return result(math.nan, "diverged") if lr < 1e-3 else result(1 / lr)
        return result(plan.seed)

    comparison, engine = compare(entries, [3, 4, 5], Results(tmp_path / "r.h5", {"task": TASK}), outcome)
    sgd, sign = comparison.standings()
    assert (sgd.chosen, sign.chosen) == ("lr 2", "lr 0.002")
    assert sgd.score == {3: 4.0, 4: 5.0, 5: 6.0}
    assert len(engine.made) == 6 + 6
    frame = comparison.curves()
    assert len(frame) == 12
    assert set(frame["optimizer"]) == {"sgd", "generalized-signsgd"}
    assert frame[(frame["optimizer"] == "sgd") & (frame["seed"] == 4)]["train_loss"].tolist() == [4.2, 4.1]


def test_a_higher_metric_wins_where_higher_is_better(plans, tmp_path, monkeypatch):
    from lsmooth import tasks

    monkeypatch.setattr(type(tasks.get(TASK)), "higher_is_better", True)
    entries = contestants({"sgd": plans["sgd"]}, {"lr": ["1", "2", "3"]})
    comparison, _ = compare(
        entries, [0], Results(tmp_path / "r.h5", {}), lambda name, plan: result(plan.hyperparameters["lr"])
    )
    assert comparison.standings()[0].chosen == "lr 3"


def test_without_a_choice_nothing_is_searched(plans, tmp_path):
    comparison, engine = compare(
        contestants(plans), [0, 1], Results(tmp_path / "r.h5", {}), lambda name, plan: result(1.0)
    )
    assert len(engine.made) == 4
    assert comparison.search_jobs() == {}


def test_diverged_and_failed_runs_are_told_and_the_rest_goes_on(plans, tmp_path):
    def outcome(name, plan):
        if plan.optimizer == "sgd" and plan.seed == 1:
            return RunResult("failed", message="no memory")
        if plan.optimizer == "sgd" and plan.seed == 2:
            return result(math.nan, "diverged")
        return result(1.0)

    results = Results(tmp_path / "r.h5", {})
    comparison, _ = compare(contestants(plans), [0, 1, 2], results, outcome)
    sgd, sign = comparison.standings()
    assert (list(sgd.score), sgd.diverged, sgd.failed) == ([0], [2], {"seed 1": "no memory"})
    assert (list(sign.score), sign.diverged, sign.failed) == ([0, 1, 2], [], {})
    results.close()
    # Continued, only what failed is made again.
    again, engine = compare(
        contestants(plans), [0, 1, 2], Results(results.path, {}, "a"), lambda name, plan: result(5.0)
    )
    assert engine.made == ["final | sgd |  | seed 1"]
    assert again.standings()[0].score == {0: 2.0, 1: 6.0}


def test_where_all_settings_diverge_there_is_no_final_run(plans, tmp_path):
    entries = contestants({"sgd": plans["sgd"]}, {"lr": ["1", "2"]})
    comparison, engine = compare(
        entries, [0], Results(tmp_path / "r.h5", {}), lambda name, plan: result(math.nan, "diverged")
    )
    assert len(engine.made) == 2
    assert comparison.standings()[0].chosen is None


def test_the_interval_is_students():
    # By hand: mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776445.
    mean, half = mean_and_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-6)
    assert math.isnan(mean_and_interval([1.0])[1])
    assert math.isnan(mean_and_interval([])[0])
