"""Engines: the same results wherever runs are made, and runs of lost workers made again."""

import dataclasses
import os
import signal
import sys
from types import ModuleType

import pytest

from lsmooth.tasks import engines
from lsmooth.tasks.engines import EngineError, LocalEngine, RayEngine, execute
from lsmooth.tasks.plan import make_plan

TINY = {"embedding": 8, "heads": 1, "feed_forward": 8, "sequence": 6, "batch_size": 4, "report_every": 5, "steps": 10}


@pytest.fixture(scope="module")
def jobs():
    plan, _ = make_plan("transformer-encoder", changes=TINY)
    return [
        (f"seed {seed}", dataclasses.asdict(dataclasses.replace(plan, seed=seed, hold_out=seed == 0)))
        for seed in (0, 1)
    ]


def numbers(result):
    return (result.outcome, [{key: value for key, value in r.items() if key != "seconds"} for r in result.reports])


@pytest.fixture(scope="module")
def expected(jobs):
    return {name: numbers(execute(plan, 1)) for name, plan in jobs}


def run(engine, jobs):
    found = {}
    engine.run(jobs, lambda name, step: None, lambda name, result: found.__setitem__(name, numbers(result)))
    return found


def test_a_run_is_evaluated_on_held_out_or_test_data(jobs, expected):
    assert {name: outcome for name, (outcome, _) in expected.items()} == {"seed 0": "finished", "seed 1": "finished"}
    assert [report["step"] for report in expected["seed 0"][1]] == [5, 10]
    for name, plan in jobs:
        other = numbers(execute(plan | {"hold_out": not plan["hold_out"]}, 1))
        assert other[1][-1]["train_loss"] == expected[name][1][-1]["train_loss"]
        assert other[1][-1]["metrics"] != expected[name][1][-1]["metrics"]


def test_processes_come_to_the_same_results(jobs, expected):
    assert run(LocalEngine(2), jobs) == expected


def test_a_run_that_raises_does_not_take_others_with_it(jobs, expected):
    bad = ("bad", jobs[0][1] | {"data": "/nowhere"})
    found = run(LocalEngine(1), [bad, jobs[1]])
    assert found["bad"] == ("failed", [])
    assert found["seed 1"] == expected["seed 1"]
    assert "no folder /nowhere" in execute(bad[1], 1).message
    broken = execute(jobs[0][1] | {"hyperparameters": {"lr": "x"}}, 1)
    assert broken.outcome == "failed"
    assert broken.message


class Killed:
    """Kills the process that is at work on a run, the first so many times that it reports a step."""

    def __init__(self, monkeypatch, times):
        self.left = times
        original = engines._work

        def dying(connection, plan, threads, times=times):
            marks = plan["data"]
            plan = plan | {"data": None}
            count = len(os.listdir(marks))
            if count < times:
                open(os.path.join(marks, str(count)), "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            original(connection, plan, threads)

        monkeypatch.setattr(engines, "_work", dying)
        # Functions of a test cannot be pickled; a forked process needs no pickling.
        monkeypatch.setattr(engines.multiprocessing, "get_all_start_methods", lambda: [])
        get_context = engines.multiprocessing.get_context
        monkeypatch.setattr(engines.multiprocessing, "get_context", lambda method: get_context("fork"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_run_of_a_killed_process_is_made_again(times, jobs, expected, monkeypatch, tmp_path):
    Killed(monkeypatch, times)
    job = [("seed 0", jobs[0][1] | {"data": str(tmp_path)})]
    if times < engines.ATTEMPTS:
        assert run(LocalEngine(1), job) == {"seed 0": expected["seed 0"]}
    else:
        with pytest.raises(EngineError, match="died 3 times"):
            run(LocalEngine(1), job)
    assert len(os.listdir(tmp_path)) == times


class FakeRay(ModuleType):
    """Enough of Ray to see what is asked of it: tasks run when they are waited for.

    The first `deaths` times that one runs, its worker is lost; as Ray does, it is run again `max_retries` times.
    """

    def __init__(self, deaths=0):
        super().__init__("ray")
        self.deaths = deaths
        self.cancelled = 0
        self.asked = None
        self.initialized = False

    def is_initialized(self):
        return self.initialized

    def init(self, **arguments):
        self.initialized = True

    def remote(self, **resources):
        self.asked = resources

        class Remote:
            def __init__(self, function):
                self.function = function

            def remote(self, *arguments):
                return (self.function, id(arguments[0]), arguments[1:], lambda: self.function(*arguments))

        return Remote

    def wait(self, references, num_returns):
        return references[-1:], references[:-1]

    def get(self, reference):
        for _ in range(1 + self.asked["max_retries"]):
            if not self.deaths:
                return reference[-1]()
            self.deaths -= 1
        raise RuntimeError("worker died")

    def cancel(self, reference):
        self.cancelled += 1


def test_what_is_asked_of_ray(jobs, expected, monkeypatch):
    """With a stand-in for Ray; `test_a_real_ray_cluster…` uses Ray itself where it is installed."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert run(RayEngine(threads=1, gpus=0.5), jobs) == expected
    assert fake.asked == {"num_cpus": 1, "num_gpus": 0.5, "max_retries": 2}


def test_ray_makes_the_run_of_a_lost_worker_again(jobs, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay(deaths=engines.ATTEMPTS - 1))
    assert run(RayEngine(), jobs) == expected
    # Every attempt loses its worker: the other runs are not waited for.
    fake = FakeRay(deaths=engines.ATTEMPTS)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(EngineError, match=r"Ray lost seed 1 \(worker died\)"):
        run(RayEngine(), jobs)
    assert (fake.deaths, fake.cancelled) == (0, 1)


def test_without_ray_the_mend_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'lsmooth\[ray\]'"):
        RayEngine()


@pytest.mark.slow
def test_a_real_ray_cluster_comes_to_the_same_results(jobs, expected):
    ray = pytest.importorskip("ray")
    try:
        assert run(RayEngine(), jobs) == expected
    finally:
        ray.shutdown()
