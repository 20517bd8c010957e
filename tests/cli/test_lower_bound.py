"""`lsmooth compare lower-bound`: the table, its files, and what is refused."""

import pandas as pd
import pytest
from click.testing import CliRunner

import lsmooth.theory
from lsmooth.cli import main


@pytest.fixture
def call(tmp_path, monkeypatch):
    whole = lsmooth.theory.lower_bound_experiment
    monkeypatch.setattr("lsmooth.theory.lower_bound_experiment", lambda: whole((4, 16, 32)))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["compare", "lower-bound", *arguments])


def test_table_and_figure(call, tmp_path):
    done = call()
    assert done.exit_code == 0, done.output
    frame = pd.read_csv(tmp_path / "compare-lower-bound.csv")
    pd.testing.assert_frame_equal(frame, lsmooth.theory.lower_bound_experiment(), check_dtype=False)
    assert (tmp_path / "compare-lower-bound.png").read_bytes().startswith(b"\x89PNG")
    lines = done.output.splitlines()
    assert lines[-1] == "Wrote compare-lower-bound.csv and compare-lower-bound.png."
    for line, (_, rows) in zip(lines[1:], frame.groupby("M_L1"), strict=False):
        shown = [float(number.replace(",", "")) for number in line.split()]
        assert shown == [rows["M_L1"].iloc[0], round(rows["bound"].iloc[0]), *rows["iterations"]]


def test_nothing_is_overwritten(call, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    refused = call("-o", "out.csv")
    assert (refused.exit_code, (tmp_path / "out.csv").read_text()) == (1, "mine")
    assert "--force" in refused.output
    assert call("-o", "out.csv", "--force").exit_code == 0


def test_a_folder_that_is_missing_is_said_before_anything_runs(call, monkeypatch):
    monkeypatch.setattr("lsmooth.theory.lower_bound_experiment", None)
    refused = call("-o", "nowhere/out.csv")
    assert refused.exit_code == 1
    assert refused.output == "Error: There is no folder nowhere; make it first, or choose another place.\n"


def test_what_does_not_go_with_it_is_refused(call):
    done = call("--seeds", "3")
    assert done.exit_code == 2
    assert "takes --output and --force alone" in done.output


def test_the_table_does_not_take_the_figures_name(call, tmp_path):
    done = call("-o", "out.png")
    assert done.exit_code == 1
    assert "end -o in .csv" in done.output
    assert not (tmp_path / "out.png").exists()
