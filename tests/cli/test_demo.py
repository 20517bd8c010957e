"""`lsmooth demo`: three files and a table."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

import lsmooth
from lsmooth.cli import main
from lsmooth.cli.threads import wait_without_spinning

FILES = ["demo.h5", "figure1.png", "figure3.png"]


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(main, ["demo", *map(str, arguments)])

    return call


def test_the_demo_writes_what_it_names(demo, tmp_path):
    done = demo("--steps", 11, "--every", 1)
    assert done.exit_code == 0, done.output
    assert sorted(item.name for item in tmp_path.iterdir()) == FILES
    for name in FILES:
        assert f"Wrote {name}" in done.output
    for name in FILES[1:]:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with lsmooth.Trace("demo.h5") as trace:
        assert trace.steps.tolist() == list(range(11))
        layers = set(trace.smoothness(by="module")["group"])
    table = [line.split() for line in done.output.splitlines()]
    rows = {line[0]: line[1:] for line in table if line and line[0] in layers}
    assert rows.keys() == layers
    expected = lsmooth.estimate(lsmooth.Trace("demo.h5"), by="module")
    for row in expected[expected["method"] == "trend"].itertuples():
        assert float(rows[row.group][0]) == pytest.approx(row.L0, rel=0.01)
        assert float(rows[row.group][1]) == pytest.approx(row.L1, rel=0.01)


def test_files_of_an_earlier_demo_are_kept_without_force(demo, tmp_path):
    (tmp_path / "figure3.png").write_text("precious")
    done = demo()
    assert done.exit_code == 1
    assert "figure3.png exists already" in done.output
    assert [item.name for item in tmp_path.iterdir()] == ["figure3.png"]
    assert (tmp_path / "figure3.png").read_text() == "precious"
    done = demo("-o", "elsewhere", "--steps", 2, "--every", 1)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "elsewhere" / "demo.h5").exists()


def test_threads_wait_without_spinning_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("command", [["demo", "--steps", "2"], ["train", "transformer-encoder", "--steps", "1"]])
def test_that_is_said_before_torch_starts_its_threads(command, tmp_path):
    """OpenMP reads the variable when it is loaded: a program that stops at that import shows what it would read."""
    program = (
        "import os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('OMP_WAIT_POLICY'))\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from lsmooth.cli import main\n"
        "main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-u", "-c", program, *command], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "PASSIVE\n"
