"""Progress without a terminal comes line by line, in time; in a terminal it is one bar."""

import os
import pty
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from lsmooth.cli import progress
from lsmooth.cli.progress import Pace, Progress, ProgressOfRuns, plain_warnings
from lsmooth.tasks.engines import Moment, RunResult
from lsmooth.tasks.training import Report


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def session(total, step=0):
    run = SimpleNamespace(step=step, total_steps=total, reports=[], loss=None, lr=0.5, done=False)
    return SimpleNamespace(run=run, recorder=SimpleNamespace(latest=None))


def train(shown, clock, steps, seconds, **facts):
    """Make steps of so many seconds each, and show every one."""
    watch = Progress(shown)
    with watch:
        for _ in range(steps):
            clock.now += seconds
            shown.run.step += 1
            shown.run.loss = 8.0 - 0.001 * shown.run.step
            shown.recorder.latest = SimpleNamespace(smoothness=12.25)
            shown.run.done = shown.run.step == shown.run.total_steps
            watch(shown)


def test_slow_steps_give_a_line_every_thirty_seconds(clock, capsys):
    """Ten hours of training: 1000 steps of 36 s; no step is without its line."""
    train(session(100_000), clock, 200, 7)
    lines = capsys.readouterr().err.splitlines()
    steps = [int(re.match(r"step (\d+) of 100000: ", text)[1]) for text in lines]
    # A line every 35 s: at the first step after 30 s.
    assert steps == list(range(5, 201, 5))
    assert lines[1] == "step 10 of 100000: loss 7.990, lr 0.5, smoothness 12.2, 194 h 25 min left"


def test_fast_steps_give_a_line_every_tenth(clock, capsys):
    train(session(250), clock, 250, 0.01)
    lines = capsys.readouterr().err.splitlines()
    assert [int(text.split()[1]) for text in lines] == list(range(25, 251, 25))
    assert lines[-1] == "step 250 of 250: loss 7.750, lr 0.5, smoothness 12.2"
    assert lines[0].endswith(", 2 s left")


def test_the_loss_is_read_for_a_line_only(clock, capsys):
    """Each look waits for the device."""

    class Loss:
        looks = 0

        def __float__(self):
            Loss.looks += 1
            return 1.0

    shown = session(1000)
    with Progress(shown) as watch:
        for step in range(1, 1001):
            shown.run.step, shown.run.loss = step, Loss()
            watch(shown)
    assert Loss.looks == len(capsys.readouterr().err.splitlines()) == 10


def test_a_resumed_run_counts_from_where_it_stands(clock, capsys):
    train(session(1000, step=900), clock, 100, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert [int(text.split()[1]) for text in lines] == [930, 960, 990, 1000]
    assert lines[0].endswith(", 1 min 10 s left")


def test_more_steps_than_were_expected(clock, capsys):
    """Where epochs differ in length, the total is an estimate."""
    shown = session(10)
    shown.run.step = 10
    train(shown, clock, 5, 40)
    assert [text.split(":")[0] for text in capsys.readouterr().err.splitlines()] == [
        f"step {step} of {step}" for step in range(11, 16)
    ]


def test_reports_have_their_lines(clock, capsys):
    shown = session(1000)
    with Progress(shown) as watch:
        for step in (1, 2, 3):
            shown.run.step = step
            shown.run.reports = [Report(step, step / 10, 2.5, 0, 1, {"loss": 2.25}, 1.0)]
            watch(shown)
    assert capsys.readouterr().err.splitlines() == ["step      1 (epoch 0.10): train loss 2.5, valid loss 2.25"]


def test_the_time_left_is_unknown_before_the_second_look(clock):
    pace = Pace()
    assert pace.left(0.5) == ""
    clock.now += 100
    assert pace.due(0.1)
    assert pace.left(0.1) == ""
    clock.now += 10
    # The slow first step does not count.
    assert pace.left(0.2) == "1 min 20 s left"
    assert pace.left(1.0) == ""


def test_every_run_of_a_comparison_is_shown(clock, capsys):
    with ProgressOfRuns(["sgd |  | seed 0", "adam | seed 0"], "training", "perplexity") as shown:
        for step in range(1, 101):
            clock.now += 1
            shown.tick("sgd |  | seed 0", Moment(step, 100, 2.5, 0.5))
            shown.tick("adam | seed 0", Moment(2 * step, 1000, 3.0, 0.001))
        report = {"step": 100, "train_loss": 2.0, "metrics": {"perplexity": 7.5}, "seconds": 100.0}
        shown.finished("sgd |  | seed 0", RunResult("finished", [report]))
        shown.finished("adam | seed 0", RunResult("failed", message="no memory"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 2 runs"
    assert lines[1:4] == [
        "training: 0 of 2 runs done, 10% of the work, 2 min 30 s left",
        "  sgd | seed 0: step 17 of 100, loss 2.5, lr 0.5",
        "  adam | seed 0: step 32 of 1000, loss 3, lr 0.001",
    ]
    assert "sgd | seed 0: train loss 2, perplexity 7.5 in 100 s" in lines
    assert "adam | seed 0: failed (no memory)" in lines
    assert lines[-1] == "training: 2 of 2 runs done, 100% of the work"


TINY = [f"--set={pair}" for pair in ("embedding=8", "heads=1", "feed_forward=8", "sequence=6", "batch_size=4")]
TRAIN = [sys.executable, "-m", "lsmooth.cli", "train", "transformer-encoder", *TINY, "--device=cpu", "--steps=40"]


def test_a_run_under_nohup_shows_its_steps(tmp_path):
    done = subprocess.run([*TRAIN, "--trace=run.h5"], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [text for text in done.stderr.splitlines() if " of 40: " in text]
    assert [int(text.split()[1]) for text in lines] == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert all(re.search(r": loss \d+\.\d{3}, lr [\d.]+(, smoothness [\d.e+-]+)?(, .* left)?$", text) for text in lines)
    assert "\r" not in done.stderr


def test_a_terminal_shows_one_bar(tmp_path):
    parent, child = pty.openpty()
    with subprocess.Popen([*TRAIN, "--trace=run.h5"], cwd=tmp_path, stdout=child, stderr=child) as process:
        os.close(child)
        said = b""
        while True:
            try:
                said += os.read(parent, 4096)
            except OSError:
                break
    os.close(parent)
    assert process.returncode == 0
    assert b"training  [" in said
    assert b"100%" in said
    assert b"step 4 of 40" not in said


def test_warnings_are_one_sentence(capsys):
    with plain_warnings():
        warnings.warn("The disk is full.", stacklevel=1)
    assert capsys.readouterr().err == "\nWarning: The disk is full.\n"
