"""`lsmooth estimate`: what it prints is what `lsmooth.estimate` returns."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from made_up import made_up
from noisy_runs import simulated

import lsmooth
from lsmooth import fit
from lsmooth.cli import main

ENDS = ("", "_low", "_high")


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
        # Spaces put decimal points below each other.
        shown = [text for text in re.split(r"[][, ]+", line) if text]
        assert shown[2:8] == [f"{getattr(row, f'{name}{end}'):.3g}" for name in ("L0", "L1") for end in ENDS]
        assert line.endswith(str(row.points))


@pytest.mark.parametrize("columns", [70, 80, 120])
@pytest.mark.parametrize("by", ["global", "module", "coordinate"])
def test_the_table_fits_the_terminal(run, columns, by):
    lines = run("--by", by, columns=columns).output.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("by", ["parameter", "coordinate"])
def test_groups_can_be_told_apart_in_a_narrow_terminal(run, small_trace, by):
    lines = run("--by", by, "--condition", "power", columns=60).output.splitlines()
    assert max(map(len, lines)) <= 60
    with lsmooth.Trace(small_trace) as trace:
        groups = trace.cloud(by).groups
    # Names stand on lines of their own, whole, with their two methods below.
    for group in groups:
        at = lines.index(group)
        assert [line.split()[0] for line in lines[at + 1 : at + 3]] == ["trend", "envelope"]


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("name", ["encoder.layers.{}.self_attn.out_proj.weight", "a_layer_{}_with_a_name_of_one_part"])
def test_layers_that_differ_in_the_middle_of_their_names_can_be_told_apart(tmp_path, columns, name):
    path = made_up(tmp_path / "run.h5", steps=30, name=name)
    arguments = ["estimate", str(path), "--by", "parameter", "--confidence", "0", "--condition", "power"]
    lines = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, arguments).output.splitlines()
    names = {line.split()[0] for line in lines} - {"group", "method", "trend", "envelope"}
    assert len(names) == 6


def test_groups_may_be_named_by_an_expression(run):
    output = run("--by", "(encoder|decoder)", "--method", "envelope").output
    assert [line.split()[0] for line in output.splitlines()][:3] == ["group", "encoder", "decoder"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "conv"], "No parameter falls into a group"),
        (["--by", ""], "No parameter falls into a group"),
        (["--by", "density", "--compare"], "use coordinate instead"),
        (["--by", "(("], "not a valid regular expression"),
        (["--compare", "--f-low", "100"], "no lower bound"),
        (["--norm", "linf"], "without the linf norm"),
        (["--by", "coordinate", "--displacement", "global"], "a coordinate's change of gradient"),
    ],
)
def test_mistakes_end_in_one_sentence(run, arguments, words):
    done = run(*arguments)
    assert done.exit_code == 1
    assert words in done.output
    assert len(done.output.splitlines()) == 1


ROW = ["L0_low", "L0_high", "L1_low", "L1_high", "spearman", "coverage", "points", "left_out", "reason"]


def test_json_has_the_documented_keys_and_the_frame_s_numbers(run, small_trace):
    done = json.loads(run("--by", "module", "--json", "--seed", "3", "--confidence", "0.8").output)
    settings = ["trace", "by", "norm", "displacement", "endpoint", "q", "tau", "condition"]
    settings += ["confidence", "seed", "estimates"]
    assert list(done) == settings
    with lsmooth.Trace(small_trace) as trace:
        frame = lsmooth.estimate(trace, "module", seed=3, confidence=0.8)
    assert list(done["estimates"][0]) == ["group", "method", "L0", "L1", *ROW]
    assert [row["L1"] for row in done["estimates"]] == frame.L1.tolist()
    expected = [None if np.isnan(value) else value for value in frame.L1_high]
    assert [row["L1_high"] for row in done["estimates"]] == expected


def test_json_of_the_other_conditions(run):
    row = json.loads(run("--condition", "power", "--json").output)["estimates"][0]
    assert list(row)[:7] == ["group", "method", "rho", "L0", "Lrho", "L0_low", "L0_high"]
    row = json.loads(run("--condition", "suboptimality", "--f-low", "0.5", "--json").output)["estimates"][0]
    assert list(row)[:5] == ["group", "method", "f_low", "H0", "H1"]
    assert row["f_low"] == 0.5
    done = json.loads(run("--compare", "--json").output)
    row = ["group", "condition", "log_error", "relative", "chance", "best", "f_low", "points", "reason"]
    assert list(done["comparison"][0]) == row
    assert list(done["verdicts"]) == ["global"]


def test_json_of_a_comparison_says_from_which_loss_suboptimality_counts(run, small_trace):
    with lsmooth.Trace(small_trace) as trace:
        lowest = trace.loss.min()
    for arguments, expected in (((), lowest), (("--f-low", "0.25"), 0.25)):
        rows = json.loads(run("--compare", "--json", *arguments).output)["comparison"]
        said = {row["condition"]: row["f_low"] for row in rows}
        assert said.pop("suboptimality") == pytest.approx(expected, rel=1e-12)
        assert set(said.values()) == {None}


def test_csv_reads_back_as_the_frame(run, small_trace):
    output = run("--by", "module", "--csv", "--method", "quantile", "--q", "0.8", "--confidence", "0").output
    with lsmooth.Trace(small_trace) as trace:
        frame = lsmooth.estimate(trace, "module", method="quantile", q=0.8, confidence=None)
    # By default, pandas before 3.0 reads floats fast and not exactly.
    empty = {"L0_low": [""], "L0_high": [""]}
    read = pd.read_csv(io.StringIO(output), keep_default_na=False, na_values=empty, float_precision="round_trip")
    assert read.columns.tolist() == frame.columns.tolist()
    assert read.L1.tolist() == frame.L1.tolist()
    assert read.L0_low.isna().all()


def test_comparison_shows_each_condition_and_a_verdict(run, small_trace):
    output = run("--compare", "--by", "module").output
    with lsmooth.Trace(small_trace) as trace:
        table = fit.compare(trace, "module")
    head, first, *_ = output.splitlines()
    assert head.split() == ["group", "constant", "linear", "suboptimality", "power"]
    assert first.split() == ["embedding", *(f"{share:.0%}" for share in table.relative[:4])]
    for group in table.group.unique():
        assert fit.verdict(table, group)[:60] in output


def test_csv_and_json_exclude_each_other(run):
    assert run("--csv", "--json").exit_code == 2


@pytest.mark.parametrize(
    "option", ["--method trend", "--condition power", "--confidence 0.5", "--seed 1", "--q 0.8", "--tau 0.8"]
)
def test_what_a_comparison_has_no_use_for_is_refused(run, option):
    done = run("--compare", *option.split())
    assert done.exit_code == 2
    assert f"leave out {option.split()[0]}." in done.output


@pytest.mark.parametrize(
    "arguments",
    [["--q", "1.5", "--method", "quantile"], ["--confidence", "1"], ["--confidence", "-0.1"], ["--seed", "-1"]],
)
def test_numbers_out_of_range_are_usage_errors_that_say_the_range(run, arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    assert f"{arguments[0]}'" in done.output
    assert "is not in the range" in done.output


def test_options_without_what_they_go_with_are_refused(run):
    for arguments, sentence in (
        (["--endpoint"], "goes with --by coordinate"),
        (["--f-low", "0"], "goes with --condition"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert sentence in done.output
    assert run("--endpoint", "--by", "coordinate", "--confidence", "0").exit_code == 0


def test_q_without_a_quantile_line_is_refused(run):
    done = run("--q", "0.8")
    assert done.exit_code == 2
    assert "add --method quantile" in done.output
    assert run("--q", "0.8", "--method", "quantile").exit_code == 0
    assert "add --method expectile" in run("--tau", "0.8").output
    assert run("--tau", "0.8", "--method", "expectile").exit_code == 0


def test_what_holds_for_all_methods_of_a_group_is_said_once(run, small_trace):
    output = run("--by", "coordinate", columns=1000).output
    notes = [line for line in output.splitlines() if ": left out:" in line or ": no interval" in line]
    assert notes
    assert not any("; " in note for note in notes)
    reasons = [note.split(": ", 1)[1] for note in notes]
    assert len(set(reasons)) == len(reasons)


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


def test_noise_is_told_of_runs_with_probes_and_refused_beside_other_fits(tmp_path, small_trace):
    simulated(tmp_path / "run.h5", steps=40)
    runner = CliRunner(env={"COLUMNS": "100"})
    done = runner.invoke(main, ["estimate", str(tmp_path / "run.h5"), "--noise"])
    assert done.exit_code == 0, done.output
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        row = fit.estimate_noise(trace).iloc[0]
    head, line = done.output.splitlines()[:2]
    assert head.split() == ["group", "s0", "s1", "noise", "scale", "sigma", "points"]
    for name in ("s0", "s1", "noise_scale"):
        assert f"{row[name]:.3g} [{row[name + '_low']:.2g}, {row[name + '_high']:.2g}]" in line
    done = runner.invoke(main, ["estimate", str(tmp_path / "run.h5"), "--noise", "--json", "--probe-size", "64"])
    assert json.loads(done.output)["estimates"][0]["noise_scale"] == pytest.approx(2 * row.noise_scale)
    for arguments, words in (
        ([small_trace, "--noise"], "record with two probes or more"),
        ([small_trace, "--noise", "--method", "trend"], "leave out --method"),
        ([small_trace, "--probe-size", "3"], "--probe-size goes with --noise"),
    ):
        done = runner.invoke(main, ["estimate", *map(str, arguments)])
        assert done.exit_code in (1, 2)
        assert words in done.output


def test_blocks_are_told_by_their_medians_over_usable_steps(tmp_path, small_trace):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", blocks=("module", 2)) as recorder:
        for step in range(8):
            optimizer.param_groups[0]["lr"] = 0.0 if step == 4 else 0.1
            x = torch.randn(5, 3)
            optimizer.zero_grad()
            recorder.backward(lambda x=x: model(x).square().mean())
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        table = trace.blocks()
    assert table.step.unique().tolist() == [0, 2, 4, 6]
    runner = CliRunner(env={"COLUMNS": "100"})
    done = runner.invoke(main, ["estimate", str(tmp_path / "run.h5"), "--blocks"])
    assert done.exit_code == 0, done.output
    head, *lines = done.output.splitlines()
    assert head.split() == ["group", "own", "others", "own", "smoothness", "smoothness", "points"]
    for name, line in zip(("0", "2"), lines, strict=True):
        mine = table[(table.group == name) & (table.step != 4)]
        assert len(mine) == 3
        shown = [f"{np.median(mine[column]):.3g}" for column in ("own", "others", "own_smoothness", "smoothness")]
        assert line.split() == [name, *shown, "3"]
    for arguments, words in (
        ([small_trace, "--blocks"], "holds no blocks of layers"),
        ([tmp_path / "run.h5", "--blocks", "--by", "module"], "leave out --by"),
        ([tmp_path / "run.h5", "--blocks", "--noise"], "leave out --noise"),
    ):
        done = runner.invoke(main, ["estimate", *map(str, arguments)])
        assert done.exit_code in (1, 2)
        assert words in done.output
