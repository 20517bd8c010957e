"""`lsmooth info` on a real trace."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from rows import header, rows

from lsmooth.cli import main
from lsmooth.trace.layout import FORMAT_VERSION
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


def test_info_counts_the_steps_of_a_real_run(small_trace):
    done = CliRunner().invoke(main, ["info", str(small_trace)])
    assert done.exit_code == 0
    assert "60 measured (0 to 59, every 1), 60 well" in done.output


def test_info_shows_the_run_at_a_glance(small_trace):
    lines = CliRunner().invoke(main, ["info", str(small_trace)]).output.splitlines()
    assert lines[0].startswith(f"{small_trace}: lsmooth trace {FORMAT_VERSION}, complete, ")
    said = dict(line.strip().split(None, 1) for line in lines[1:])
    assert said["model"] == "TinyTransformer: 15 tensors, 2,917 parameters, float32 on cpu"
    assert said["optimizer"] == "SGD, lr 0.5 at the start"
    assert said["followed"] == "60 coordinates, norms l2"
    smoothness = Trace(small_trace).cloud().smoothness
    assert (
        f"median {np.median(smoothness):.4g}, from {smoothness.min():.4g} to {smoothness.max():.4g}"
        in said["smoothness"]
    )


def test_info_shows_settings_in_words_and_in_one_column(tmp_path):
    path = tmp_path / "run.h5"
    told = {"hyperparameters": {"lr": 0.5, "momentum": 0.9}, "a_name_that_is_longer_than_most": "x"}
    made = header()
    writer = TraceWriter(path, header(attributes=made.attributes | {"user_metadata": told}))
    writer.append(rows(made, 0, 3))
    writer.close()
    lines = CliRunner().invoke(main, ["info", str(path)]).output.splitlines()
    assert lines[-2:] == ["  hyperparameters lr 0.5, momentum 0.9", "  a_name_that_is_longer_than_most x"]
    assert lines[1].startswith("  model           Made: ")


def test_the_users_own_texts_forge_no_lines(tmp_path):
    path = tmp_path / "run\x1b[31m.h5"
    made = header()
    told = {"note": "x\n  steps      all well", "state\n": {"a": "\x1b[2J\ttab"}}
    writer = TraceWriter(path, header(attributes=made.attributes | {"user_metadata": told}))
    writer.append(rows(made, 0, 3))
    writer.close()
    output = CliRunner().invoke(main, ["info", str(path)]).output
    assert not [char for char in output if not char.isprintable() and char != "\n"]
    assert [line.split()[0] for line in output.splitlines()].count("steps") == 1


@pytest.mark.parametrize("state", ["being written", "cut off", "complete"])
def test_info_says_what_was_flagged_and_how_the_run_stands(tmp_path, state):
    made = header(norms=("linf",), densities=True)
    writer = TraceWriter(tmp_path / "run.h5", made)
    numbers = rows(made, 0, 10)
    numbers["status"] = np.array([1, 1, 1, 2, 2, 4, 8, 8 | 16, 1, 1], np.uint8)
    numbers["loss"][9] = np.nan
    writer.append(numbers)
    if state != "being written":
        (writer.close if state == "complete" else writer.abandon)()
    run = CliRunner()
    text = run.invoke(main, ["info", str(tmp_path / "run.h5")]).output
    assert f"lsmooth trace {FORMAT_VERSION}, {state}, " in text.splitlines()[0]
    assert (
        "10 measured (0 to 90, every None), 5 well; left out of fits: 2 no displacement, 1 below resolution, "
        "2 non finite, 1 moved"
    ) in text
    assert "3 coordinates and densities of all, norms l2, linf" in text
    facts = json.loads(
        run.invoke(main, ["info", "--json", str(tmp_path / "run.h5")]).output, parse_constant=pytest.fail
    )
    assert facts["state"] == state
    assert facts["status"] == {"measured": 5, "no_displacement": 2, "below_resolution": 1, "non_finite": 2, "moved": 1}
    assert facts["last_loss"] is None
    assert facts["bytes"] == (tmp_path / "run.h5").stat().st_size
    writer.close()
