"""`lsmooth estimate`: what it prints is what `lsmooth.estimate` returns."""

import numpy as np
import pytest
from click.testing import CliRunner

import lsmooth
from lsmooth.cli import main


@pytest.fixture
def run(small_trace):
    def call(*arguments, columns=100):
        return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["estimate", str(small_trace), *arguments])

    return call


def test_the_table_shows_the_numbers_of_the_frame(run, small_trace):
    with lsmooth.Trace(small_trace) as trace:
        frame = lsmooth.estimate(trace, "module", method="trend")
    done = run("--by", "module", "--method", "trend", columns=150)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert len(lines) == 1 + len(frame)
    for line, row in zip(lines[1:], frame.itertuples(), strict=True):
        assert line.split()[:2] == [row.group, "trend"]
        assert f" {row.L0:.3g} [{row.L0_low:.3g}, {row.L0_high:.3g}] " in line
        assert f" {row.L1:.3g} [{row.L1_low:.3g}, {row.L1_high:.3g}] " in line
        assert line.endswith(str(row.points))


@pytest.mark.parametrize("columns", [70, 80, 120])
@pytest.mark.parametrize("by", ["global", "module", "coordinate"])
def test_the_table_fits_the_terminal(run, columns, by):
    lines = run("--by", by, columns=columns).output.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= columns


def test_groups_may_be_named_by_an_expression(run):
    output = run("--by", "(encoder|decoder)", "--method", "envelope").output
    assert [line.split()[0] for line in output.splitlines()][:3] == ["group", "encoder", "decoder"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "conv"], "No parameter falls into a group"),
        (["--by", "(("], "not a valid regular expression"),
        (["--q", "1.5"], "q=1.5"),
    ],
)
def test_mistakes_end_in_one_sentence(run, arguments, words):
    done = run(*arguments)
    assert done.exit_code == 1
    assert words in done.output
    assert len(done.output.splitlines()) == 1


def test_a_method_that_does_not_exist_is_a_usage_error(run):
    assert run("--method", "mean").exit_code == 2


def test_reading_and_fitting_never_import_torch(small_trace):
    import subprocess
    import sys

    script = (
        "import sys; from lsmooth.cli import main\n"
        f"main(['estimate', {str(small_trace)!r}], standalone_mode=False)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert np.char.startswith(done.stdout.splitlines()[1], "global")
