"""`lsmooth tail`: the lines of a finished, a growing and a killed trace."""

import time

import numpy as np
import pytest
from click.testing import CliRunner
from rows import header, rows

from lsmooth.cli import main
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


def tail(*arguments):
    done = CliRunner().invoke(main, ["tail", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done


def test_a_line_holds_the_steps_numbers(small_trace):
    lines = tail(small_trace, "-n", "3").stdout.splitlines()
    frame = Trace(small_trace).to_frame()
    edges = Trace(small_trace).curvature().set_index("step").edge_ratio
    assert lines[0].split()[:6] == ["step", "loss", "lr", "grad", "norm", "smoothness"]
    assert len(lines) == 4
    for line, (_, row) in zip(lines[1:], frame.tail(3).iterrows(), strict=True):
        step, loss, lr, grad_norm, smoothness, limit, edge, spark = line.split()
        assert int(step) == row["step"]
        for text, value in ((loss, row["loss"]), (grad_norm, row["grad_norm"]), (smoothness, row["smoothness"])):
            assert float(text) == pytest.approx(value, rel=1e-3)
        assert float(limit) == pytest.approx(2 / row["lr"], rel=1e-3)
        assert float(lr) == pytest.approx(row["lr"], rel=1e-2)
        assert float(edge) == pytest.approx(edges[row["step"]], rel=1e-2)
        assert len(spark) == 16
    # The spark line is on a logarithmic scale, from the smallest of the values shown to the largest.
    shown = frame["smoothness"].to_numpy()[-16:]
    assert lines[-1].split()[-1][int(np.argmax(shown))] == "█"
    assert lines[-1].split()[-1][int(np.argmin(shown))] == "▁"


def test_steps_that_were_not_measured_well_carry_their_reasons(tmp_path):
    made = header()
    writer = TraceWriter(tmp_path / "run.h5", made)
    numbers = rows(made, 0, 3)
    numbers["status"] = np.array([1, 2, 8 | 16], np.uint8)
    numbers["lr"][1] = 0
    writer.append(numbers)
    writer.close()
    lines = tail(tmp_path / "run.h5").stdout.splitlines()
    assert lines[2].endswith("no displacement")
    assert lines[2].split()[5] == "-"
    assert lines[3].endswith("non finite, moved")


def test_it_follows_a_trace_until_the_run_ends(tmp_path, monkeypatch):
    made = header()
    path = tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 20))
    growth = iter([8, 0, 1, 0, 0, 40, 31])

    def run_goes_on(seconds):
        """What the run does between two looks."""
        more = next(growth, None)
        if more is None:
            writer.close()
        elif more:
            writer.append(rows(made, writer.rows, writer.rows + more))

    monkeypatch.setattr(time, "sleep", run_goes_on)
    done = tail(path, "-n", "5", "--interval", "0.05")
    assert [int(line.split()[0]) for line in done.stdout.splitlines()[1:]] == [10 * row for row in range(15, 100)]
    # A line is the same whether it is printed alone or with many others.
    assert done.stdout.splitlines()[1:] == tail(path, "-n", "85").stdout.splitlines()[1:]
    assert not done.stderr


def test_it_says_when_a_run_was_cut_off(tmp_path):
    made = header()
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, 2))
    writer.abandon()
    done = tail(tmp_path / "run.h5")
    assert len(done.stdout.splitlines()) == 3
    assert "was cut off" in done.stderr


def test_nothing_measured_yet(tmp_path):
    TraceWriter(tmp_path / "run.h5", header()).close()
    assert tail(tmp_path / "run.h5").stdout.splitlines()[1] == "No step has been measured yet."
