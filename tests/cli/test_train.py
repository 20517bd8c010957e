"""`lsmooth train`: what it writes and says, what it refuses, and how it resumes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from forked import read_only

import lsmooth
from lsmooth.cli import main
from lsmooth.trace.layout import FIELDS

TINY = [
    "transformer-encoder",
    *[
        "--set",
        "embedding=8",
        "--set",
        "heads=1",
        "--set",
        "feed_forward=8",
        "--set",
        "sequence=6",
        "--set",
        "batch_size=4",
    ],
    *["--every", "5", "--coordinates", "2", "--device", "cpu"],
]


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(main, ["train", *map(str, arguments)])

    return call


def test_a_run_writes_trace_and_checkpoint_and_names_them(train, tmp_path):
    done = train(*TINY, "--steps", 20, "--seed", 3, "--lr", 0.5)
    assert done.exit_code == 0, done.output
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        "transformer-encoder.h5",
        "transformer-encoder.h5.checkpoint.pt",
    ]
    for name in (
        "transformer-encoder.h5 (4 measured steps)",
        "transformer-encoder.h5.checkpoint.pt",
        "unigram entropy",
    ):
        assert name in done.output
    assert re.search(r"valid loss \d+\.\d+, perplexity \d+", done.output)
    with lsmooth.Trace("transformer-encoder.h5") as trace:
        assert trace.steps.tolist() == [0, 5, 10, 15]
        assert trace.lr[:, 0].tolist() == [0.5] * 4
        about = trace.metadata["user_metadata"]
        assert about["task"] == "transformer-encoder"
        assert about["hyperparameters"] == {"lr": 0.5}
        assert about["settings"]["embedding"] == 8


def test_densities_are_counted_where_they_are_asked_for(train):
    assert train(*TINY, "--steps", 6, "--densities").exit_code == 0
    with lsmooth.Trace("transformer-encoder.h5") as trace:
        assert trace.has_densities
        assert trace.density("decoder.weight").counts.sum() > 0
    done = train("--resume", "--trace", "transformer-encoder.h5", "--steps", 11)
    assert done.exit_code == 0, done.output
    with lsmooth.Trace("transformer-encoder.h5") as trace:
        assert trace.has_densities


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "generalized-signsgd", "adam"])
def test_any_optimizer_by_name(train, optimizer):
    done = train(*TINY, "--steps", 2, "--optimizer", optimizer, "--lr", 0.01)
    assert done.exit_code == 0, done.output
    assert f"{optimizer} lr 0.01" in done.output


def test_a_folder_of_text(train, tmp_path):
    for name in ("train", "valid"):
        (tmp_path / f"wiki.{name}.tokens").write_text("some words of text , again and again .\n" * 40)
    done = train(*TINY, "--steps", 3, "--data", tmp_path)
    assert done.exit_code == 0, done.output
    assert "(paper)" in done.output


def test_norms_by_layer_and_critical_rates_are_recorded_and_resumed(train):
    asked = ["--norm", "linf", "--layer-norm", "layers=spectral", "--layer-norm", "*=linf", "--critical"]
    done = train(*TINY, "--steps", 10, *asked)
    assert done.exit_code == 0, done.output
    done = train("--resume", "--trace", "transformer-encoder.h5", "--steps", 20, *asked)
    assert done.exit_code == 0, done.output
    with lsmooth.Trace("transformer-encoder.h5") as trace:
        assert trace.steps.tolist() == [0, 5, 10, 15]
        assert set(trace.metadata["layer_norms"]) == {"spectral", "linf"}
        assert trace.metadata["norms"] == ["l2", "linf", "layers"]
        assert not np.isnan(trace.critical_lr().critical_gamma).any()
    for wrong, sentence in (
        (["--layer-norm", "layers=linf"], "was begun with --layer-norm"),
        (["--norm", "spectral"], "was begun with --norm"),
    ):
        done = train("--resume", "--trace", "transformer-encoder.h5", *wrong)
        assert done.exit_code == 1
        assert sentence in done.output
    done = train(*TINY, "--steps", 10, "--force", "--layer-norm", "spectral")
    assert done.exit_code == 1
    assert "not of the form PATTERN=NORM" in done.output


def test_full_precision_measures_without_mixed_precision_and_trains_with_it(train):
    for name, more in (("mixed", ["--amp", "bf16"]), ("full", ["--amp", "bf16", "--full-precision"]), ("single", [])):
        done = train(*TINY, "--steps", 6, "--trace", f"{name}.h5", *more)
        assert done.exit_code == 0, done.output
    with lsmooth.Trace("mixed.h5") as mixed, lsmooth.Trace("full.h5") as full, lsmooth.Trace("single.h5") as single:
        assert [trace.metadata["autocast"] for trace in (mixed, full, single)] == [1, 0, 1]
        bounds = [set(trace.read("rounding_bound").tolist()) for trace in (mixed, full, single)]
        assert bounds == [{2.0**-6}, {2.0**-19}, {2.0**-19}]
        # The first step starts from the same weights: its loss is float32's. Training goes on in mixed precision.
        assert full.loss[0] == single.loss[0] != mixed.loss[0]
    mixed, full, single = (
        torch.load(f"{name}.h5.checkpoint.pt", weights_only=True)["run"]["model"]
        for name in ("mixed", "full", "single")
    )
    assert all(torch.equal(mixed[name], full[name]) for name in mixed)
    assert not all(torch.equal(mixed[name], single[name]) for name in mixed)


def test_offload_is_the_recorders_and_is_kept_when_a_run_is_resumed(train, monkeypatch):
    asked = []
    begun = lsmooth.Recorder.__init__

    def init(self, *arguments, **options):
        asked.append(options["offload"])
        begun(self, *arguments, **options)

    monkeypatch.setattr(lsmooth.Recorder, "__init__", init)
    assert train(*TINY, "--steps", 6, "--trace", "run.h5", "--offload").exit_code == 0
    assert train("--resume", "--trace", "run.h5", "--steps", 11).exit_code == 0
    assert train(*TINY, "--steps", 6, "--trace", "other.h5").exit_code == 0
    assert asked == [True, True, False]
    done = train("--resume", "--trace", "other.h5", "--steps", 11, "--offload")
    assert done.exit_code == 1
    assert "other.h5 was begun with --offload False, not True" in done.output


def test_full_precision_is_kept_when_a_run_is_resumed(train):
    assert train(*TINY, "--steps", 6, "--trace", "run.h5", "--amp", "bf16", "--full-precision").exit_code == 0
    done = train("--resume", "--trace", "run.h5", "--steps", 11)
    assert done.exit_code == 0, done.output
    with lsmooth.Trace("run.h5") as trace:
        assert trace.read("rounding_bound").tolist() == [2.0**-19] * 3
    assert train(*TINY, "--steps", 6, "--trace", "other.h5", "--amp", "bf16").exit_code == 0
    done = train("--resume", "--trace", "other.h5", "--steps", 11, "--full-precision")
    assert done.exit_code == 1
    assert "was begun" in done.output
    assert "--full-precision" in done.output


def test_probes_are_recorded_resumed_and_give_the_noise(train):
    """Without a size they are cut as batches are, and a smaller one is evaluated at once."""
    asked = ["--probe", 12, "--every", 1]
    done = train(*TINY, "--steps", 8, *asked)
    assert done.exit_code == 0, done.output
    done = train("--resume", "--trace", "transformer-encoder.h5", "--steps", 12)
    assert done.exit_code == 0, done.output
    assert train(*TINY, "--steps", 12, *asked, "--trace", "whole.h5").exit_code == 0
    with lsmooth.Trace("transformer-encoder.h5") as trace, lsmooth.Trace("whole.h5") as whole:
        assert (trace.metadata["probes"], trace.metadata["probe_size"]) == (3, 4)
        assert trace.status_counts() == {"measured": 12}
        np.testing.assert_array_equal(trace.read("grad_noise"), whole.read("grad_noise"))
        np.testing.assert_array_equal(trace.read("grad_diff"), whole.read("grad_diff"))
    done = CliRunner().invoke(main, ["estimate", "transformer-encoder.h5", "--noise", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.output)["estimates"]
    assert (row["probes"], row["points"]) == (3, 12)
    assert row["noise_scale_low"] < row["noise_scale"] < row["noise_scale_high"]

    assert train(*TINY, "--steps", 2, "--probe", 3, "--trace", "few.h5").exit_code == 0
    assert train(*TINY, "--steps", 2, "--probe", 12, "--probe-size", 6, "--trace", "two.h5").exit_code == 0
    for path, numbers in (("few.h5", (1, 3)), ("two.h5", (2, 6))):
        with lsmooth.Trace(path) as trace:
            assert (trace.metadata["probes"], trace.metadata["probe_size"]) == numbers

    for wrong, sentence in (
        (["--probe", 16], "--probe 12, not 16"),
        (["--probe-size", 2], "--probe-size 4, not 2"),
    ):
        done = train("--resume", "--trace", "transformer-encoder.h5", *wrong)
        assert done.exit_code == 1
        assert sentence in done.output
    done = train("--resume", "--trace", "whole.h5", "--probe", 12, "--probe-size", 4, "--steps", 13)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("by", "groups"), [("3", 3), ("module", 14), (r"(layers\.\d)", 2)])
def test_blocks_are_moved_resumed_and_printed(train, by, groups):
    asked = ["--blocks", by, "--blocks-every", 10]
    done = train(*TINY, "--steps", 10, *asked)
    assert done.exit_code == 0, done.output
    done = train("--resume", "--trace", "transformer-encoder.h5", "--steps", 20)
    assert done.exit_code == 0, done.output
    assert train(*TINY, "--steps", 20, *asked, "--trace", "whole.h5").exit_code == 0
    with lsmooth.Trace("transformer-encoder.h5") as trace, lsmooth.Trace("whole.h5") as whole:
        assert trace.steps.tolist() == [0, 5, 10, 15]
        table = trace.blocks()
        assert table.step.unique().tolist() == [0, 10]
        assert table.group.nunique() == groups
        pd.testing.assert_frame_equal(table, whole.blocks())
    printed = CliRunner().invoke(main, ["estimate", "transformer-encoder.h5", "--blocks", "--json"])
    rows = json.loads(printed.output)["estimates"]
    assert [row["points"] for row in rows] == [2] * groups
    for wrong, sentence in (
        (["--blocks", "parameter"], f"--blocks {by}, not parameter"),
        (["--blocks-every", 3], "--blocks-every 10, not 3"),
    ):
        done = train("--resume", "--trace", "transformer-encoder.h5", *wrong)
        assert done.exit_code == 1
        assert sentence in done.output
    done = train("--resume", "--trace", "whole.h5", *asked, "--steps", 21)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([*TINY, "--blocks", "99"], 1, "the model has 14 modules; give a number from 1 to 14"),
        ([*TINY, "--blocks", "("], 1, "regular expression"),
        ([*TINY, "--blocks", "nothing(here)"], 1, "nothing(here)"),
        ([*TINY, "--blocks-every", "4"], 2, "--blocks-every goes with --blocks"),
        ([*TINY, "--probe", "10"], 1, "10 examples cannot be cut into probes of 4; give a multiple of 4, such as 8"),
        ([*TINY, "--probe", "99999999"], 1, "too few for probes of 99,999,999"),
        ([*TINY, "--probe-size", "4"], 2, "--probe-size goes with --probe"),
        (["transformer-encodr"], 1, "did you mean transformer-encoder"),
        ([*TINY, "--optimizer", "sdg"], 1, "did you mean sgd"),
        ([*TINY, "--set", "droput=0.1"], 1, "did you mean dropout"),
        ([*TINY, "--set", "dropout"], 2, "KEY=VALUE"),
        ([*TINY, "--set", "dropout=wet"], 1, "cannot be read as float"),
        ([*TINY, "--set", "heads=3"], 1, "heads=3 do not divide a width of 8"),
        ([*TINY, "--data", "nowhere"], 1, "no folder nowhere"),
        ([*TINY, "--data", "."], 1, "wiki.train.tokens"),
        ([*TINY, "--device", "abacus"], 2, "no device 'abacus'"),
        ([*TINY, "--steps", "0"], 2, "--steps"),
        ([*TINY, "--trace", "no/where/run.h5"], 1, "no folder no/where"),
        ([], 2, "Missing argument 'TASK'"),
        (["--resume"], 2, "--trace"),
        (["--resume", "--trace", "run.h5"], 1, "no checkpoint run.h5.checkpoint.pt"),
        (["--resume", "--force", "--trace", "run.h5"], 2, "one of them"),
    ],
)
def test_what_cannot_be_ends_in_a_sentence(train, tmp_path, arguments, code, sentence):
    done = train(*arguments)
    assert done.exit_code == code, done.output
    assert sentence in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_an_existing_trace_is_left_alone_without_force(train, tmp_path):
    (tmp_path / "run.h5").write_text("precious")
    done = train(*TINY, "--steps", 2, "--trace", "run.h5")
    assert done.exit_code == 1
    assert "run.h5 exists already" in done.output
    assert (tmp_path / "run.h5").read_text() == "precious"
    assert train(*TINY, "--steps", 2, "--trace", "run.h5", "--force").exit_code == 0
    assert lsmooth.Trace("run.h5").steps.tolist() == [0]


def test_a_compiler_that_fails_ends_in_a_sentence(train, monkeypatch):
    compile_as_usual = torch.nn.Module.compile

    def no_compiler(graph, inputs):
        raise RuntimeError("g++ was not found")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compile_as_usual(model, backend=no_compiler))
    done = train(*TINY, "--steps", 2, "--compile")
    assert done.exit_code == 1, done.output
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"Error: The model cannot be compiled here \(.*g\+\+ was not found\); leave out --compile\.", last
    )
    assert "Traceback" not in done.output


def test_a_compiler_that_ctrl_c_ends_is_not_said_to_fail(train, monkeypatch):
    compile_as_usual = torch.nn.Module.compile

    def interrupted(graph, inputs):
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("g++ died")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compile_as_usual(model, backend=interrupted))
    done = train(*TINY, "--steps", 2, "--compile", "--trace", "run.h5")
    assert done.exit_code == 1, done.output
    assert done.stderr.splitlines()[-1].startswith("Error: Stopped while the model was being compiled")
    assert Path("run.h5.checkpoint.pt").exists()


def test_a_diverged_run_says_so(train):
    done = train(*TINY, "--steps", 20, "--lr", 1e30, "--set", "max_norm=none", "--set", "report_every=5")
    assert done.exit_code == 1
    assert "Diverged" in done.output
    assert "smaller --lr" in done.output
    assert "flagged" in done.output


def test_a_trace_that_cannot_be_written_ends_it_before_it_begins(train, tmp_path):
    """A script's recorder would warn and go on without a trace; this command exists for the trace and refuses."""
    folder = tmp_path / "runs"
    folder.mkdir()
    path = folder / "run.h5"
    options = [*TINY, "--steps", 6, "--trace", path]
    with read_only(folder):
        begun = train(*options)
    assert list(folder.iterdir()) == []
    assert train(*options).exit_code == 0
    before = {item.name: item.read_bytes() for item in folder.iterdir()}
    with read_only(folder):
        replaced = train(*options, "--force")
        resumed = train("--trace", path, "--resume", "--steps", 9)
    for done in (begun, replaced, resumed):
        assert done.exit_code == 1
        assert done.stderr == (
            f"Error: {path} cannot be written (Permission denied); choose another path, or see to the permissions and "
            "the room there.\n"
        )
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == before


def test_resuming_takes_its_options_from_the_checkpoint_and_refuses_others(train):
    assert train(*TINY, "--steps", 7, "--trace", "run.h5", "--lr", 0.5).exit_code == 0
    done = train("--resume", "--trace", "run.h5")
    assert done.exit_code == 0
    assert "all 7 steps are done" in done.output
    for arguments, sentence in (
        (["--lr", 0.4], "--lr 0.5, not 0.4"),
        (["--every", 3], "--every 5, not 3"),
        (["--seed", 1], "--seed 0, not 1"),
        (["--optimizer", "adam"], "--optimizer sgd, not adam"),
        (["--set", "dropout=0.3"], "--set dropout 0.2, not 0.3"),
    ):
        done = train("--resume", "--trace", "run.h5", "--steps", 12, *arguments)
        assert done.exit_code == 1, done.output
        assert sentence in done.output
    done = train("--resume", "--trace", "run.h5", "--steps", 12, "--lr", 0.5, "--set", "dropout=0.2")
    assert done.exit_code == 0, done.output
    assert "from step 7" in done.output
    with lsmooth.Trace("run.h5") as trace:
        assert trace.steps.tolist() == [0, 5, 10]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_killed_and_resumed_the_trace_is_the_same_bit_for_bit(train, tmp_path):
    arguments = [*TINY, "--steps", "800", "--every", "20", "--set", "report_every=120"]
    path = tmp_path / "run.h5"
    command = [sys.executable, "-m", "lsmooth.cli", "train", *arguments, "--trace", str(path), "--checkpoint-every"]
    with subprocess.Popen([*command, "0.3"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        place = tmp_path / "run.h5.checkpoint.pt"
        wait_for(place.exists)
        first = place.stat().st_mtime_ns
        wait_for(lambda: place.stat().st_mtime_ns != first)
        process.kill()
    with lsmooth.Trace(path) as trace:
        assert trace.state == "cut off"
        assert len(trace) < 40
    done = train("--resume", "--trace", path)
    assert done.exit_code == 0, done.output
    assert train(*arguments, "--trace", "whole.h5").exit_code == 0
    with lsmooth.Trace(path) as a, lsmooth.Trace("whole.h5") as b:
        assert a.steps.tolist() == b.steps.tolist() == list(range(0, 800, 20))
        for field in FIELDS:
            if b.has(field.name) and field.name != "time":
                np.testing.assert_array_equal(a.read(field.name), b.read(field.name), err_msg=field.name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_one_line_and_a_resumable_state(train, tmp_path, number):
    path = tmp_path / "run.h5"
    command = [sys.executable, "-m", "lsmooth.cli", "train", *TINY, "--steps", "100000", "--trace", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        wait_for((tmp_path / "run.h5.checkpoint.pt").exists)
        time.sleep(0.3)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(
        r"Stopped after step \d+ of 100000; continue with: lsmooth train --resume --trace \S*run\.h5\n", output
    )
    stopped = int(re.search(r"step (\d+)", output)[1])
    done = train("--resume", "--trace", path, "--steps", stopped + 3)
    assert done.exit_code == 0, done.output
    with lsmooth.Trace(path) as trace:
        assert trace.steps.tolist() == list(range(0, stopped + 3, 5))
