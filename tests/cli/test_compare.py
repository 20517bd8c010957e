"""`lsmooth compare`: the table, the files, going on after a stop."""

import re
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from forked import read_only

from lsmooth.cli import main

TINY = [
    "transformer-encoder",
    *(f"--set={pair}" for pair in ("embedding=8", "heads=1", "feed_forward=8", "sequence=6", "batch_size=4")),
    *["--set=report_every=5", "--device", "cpu", "--steps", "10", "--jobs", "2"],
]


@pytest.fixture
def compare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(main, ["compare", *map(str, arguments)])

    return call


def test_a_comparison_from_grid_to_table(compare, tmp_path):
    arguments = [*TINY, "--optimizers", "sgd,adam", "--grid", "sgd:lr=0.001,1", "--grid", "adam:lr=0.01", "-o", "r.h5"]
    done = compare(*arguments, "--seeds", 2)
    assert done.exit_code == 0, done.output
    assert sorted(item.name for item in tmp_path.iterdir()) == ["r.h5", "r.png"]
    assert "Wrote r.h5 (every run) and r.png" in done.output
    lines = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert lines[0] == ["minus"]
    assert lines[1] == ["optimizer", "settings", "train loss", "test perplexity", "the first", "clipped", "seeds"]
    assert [line[:2] for line in lines[2:4]] == [["sgd", "lr 1"], ["adam", "lr 0.01"]]
    assert all(re.fullmatch(r"[\d.e+]+ ± [\d.e+]+", cell) for line in lines[2:4] for cell in line[2:4])
    with h5py.File("r.h5") as file:
        assert len(file["runs"]) == 2 + 4
        names = {"sgd": "final | sgd | lr 1 | seed {}", "adam": "final | adam | lr 0.01 | seed {}"}
        perplexity = {
            key: np.array([file["runs"][name.format(seed)]["metrics/perplexity"][-1] for seed in range(2)])
            for key, name in names.items()
        }
    # Of two numbers, Student's interval is 12.706 times their standard error, half of their distance.
    change = perplexity["adam"] - perplexity["sgd"]
    mean, half = map(float, lines[3][4].split(" ± "))
    assert lines[2][4] == "-"
    assert mean == pytest.approx(change.mean(), rel=1e-3)
    assert half == pytest.approx(12.706 * abs(change[0] - change[1]) / 2, rel=0.06)
    first = done.stdout
    # The results hold every run: none is made again, and the table is the same.
    again = compare(*arguments, "--seeds", 2, "--resume")
    assert again.stdout == first
    assert "seed 0:" not in again.stderr
    # A third seed adds two runs.
    more = compare(*arguments, "--seeds", 3, "--resume")
    assert more.exit_code == 0, more.output
    assert more.stderr.count("seed 2: train loss") == 2
    assert more.stderr.count("seed 0:") == 0
    # Other settings are other runs.
    other = compare(*arguments, "--seeds", 2, "--resume", "--set", "dropout=0")
    assert other.exit_code == 1
    assert "dropout was 0.2 there and is 0.0 here" in other.output


@pytest.mark.parametrize("room", [0, 7000])
def test_results_that_cannot_be_written_end_it_in_a_sentence(compare, tmp_path, small_files, room):
    """Refused before training, and again when the first run is to be written; an existing file stays."""
    small_files(room)
    done = compare(*TINY, "--optimizers", "sgd", "--seeds", 1, "--jobs", 1, "-o", "r.h5")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: r.h5 cannot be written (File too large); choose another -o, or see to the permissions and the room "
        "there and go on with --resume."
    )
    assert [item.name for item in tmp_path.iterdir()] == (["r.h5"] if room else [])
    assert ("training" in done.stderr) == (room > 0)


def test_results_in_a_folder_without_permission_are_refused(compare, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    with read_only(folder):
        done = compare(*TINY, "-o", "runs/r.h5")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: runs/r.h5 cannot be written (Permission denied); choose another -o")
    assert list(folder.iterdir()) == []


def test_without_clipping_nothing_is_said_of_it(compare):
    done = compare(*TINY, "--set", "max_norm=none", "--seeds", 1, "--optimizers", "sgd-clip-grad")
    assert done.exit_code == 0, done.output
    assert "clipped" not in done.stdout


def test_clipping_is_compared_and_divergence_is_told(compare):
    done = compare(*TINY, "--clip", "0.25,none", "--seeds", 1, "--set", "optimizer.lr=1e30")
    assert done.exit_code == 0, done.output
    rows = {line[0]: line[1:] for line in (re.split(r"\s{2,}", text) for text in done.stdout.splitlines())}
    assert "clipped" in rows["optimizer"]
    assert rows["sgd, max_norm 0.25"][-2].endswith("%")
    assert rows["sgd, no clipping"][-2] == "-"
    assert "sgd, no clipping: diverged with seed 0" in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["transformer-encodr"], 1, "did you mean transformer-encoder"),
        ([*TINY, "--optimizers", "sgd,adem"], 1, "did you mean adam"),
        ([*TINY, "--optimizers", "sgd,sgd"], 1, "twice"),
        ([*TINY, "--grid", "lr"], 2, "KEY=VALUE"),
        ([*TINY, "--grid", "lrr=1,2"], 1, "did you mean lr"),
        ([*TINY, "--clip", "much"], 1, "--clip=much"),
        ([*TINY, "--resume", "--force"], 2, "one of them"),
        ([*TINY, "-o", "no/where.h5"], 1, "no folder no"),
        ([*TINY, "-o", "results.png"], 1, "another suffix"),
    ],
)
def test_what_cannot_be_ends_in_a_sentence(compare, tmp_path, arguments, code, sentence):
    done = compare(*arguments)
    assert done.exit_code == code, done.output
    assert sentence in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_data_without_a_test_split_is_refused_before_any_run(compare, tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("some words of text , again and again .\n" * 40)
    done = compare(*TINY, "--data", tmp_path, "--grid", "lr=1,2")
    assert done.exit_code == 1
    assert done.stderr == (
        f"Error: {tmp_path} has no test split, on which runs are compared; put it beside the others.\n"
    )
    (tmp_path / "test.txt").write_text("some words of text , again and again .\n" * 40)
    assert compare(*TINY, "--data", tmp_path, "--seeds", 1).exit_code == 0


def test_existing_files_are_left_alone_without_force(compare, tmp_path):
    (tmp_path / "r.png").write_text("precious")
    done = compare(*TINY, "-o", "r.h5")
    assert done.exit_code == 1
    assert "r.png exists already" in done.output
    assert [item.name for item in tmp_path.iterdir()] == ["r.png"]


def test_ctrl_c_keeps_what_is_done(compare, tmp_path):
    # The second run is so long that it is surely under way when the first has ended.
    arguments = [*TINY, "--optimizers", "sgd,adam", "--seeds", "1", "--jobs", "1", "-o", str(tmp_path / "r.h5")]
    command = [sys.executable, "-m", "lsmooth.cli", "compare", *arguments]
    long = [*command, "--grid", "sgd:steps=10", "--grid", "adam:steps=1000000"]
    with subprocess.Popen(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "final | sgd" in line:
                break
        # Meanwhile, another comparison cannot write the file.
        for option in ("--resume", "--force"):
            other = compare(*arguments, option)
            assert other.exit_code == 1
            assert "r.h5 is being written by another `lsmooth compare`; wait for it to end" in other.stderr
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"Stopped; \S*r\.h5 holds 1 run: the same command with --resume continues\.\n", output)
    done = compare(*arguments, "--resume", "--grid", "sgd:steps=10", "--grid", "adam:steps=12")
    assert done.exit_code == 0, done.output
    assert "final | sgd" not in done.stderr
