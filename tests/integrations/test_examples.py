"""The examples run as their first lines say, and are short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lsmooth

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = {
    "plain_loop.py": [sys.executable],
    "hugging_face.py": [sys.executable],
    "ddp.py": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
}


def test_there_are_no_others():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs_and_leaves_a_trace(name, tmp_path):
    if name == "hugging_face.py":
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
    done = subprocess.run(
        [*COMMANDS[name], str(EXAMPLES / name), "run.h5"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "At step" not in done.stderr
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert len(trace) >= 20
        assert trace.status_counts() == {"measured": len(trace)}
        assert trace.loss[-5:].mean() < 0.7 * trace.loss[:3].mean()
        assert f"{len(trace)} measured steps" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
