"""The scripts of the findings run, on little of the built-in text."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from small_trace import write_small_trace

import lsmooth

FINDINGS = Path(__file__).parents[2] / "examples" / "findings"


def run(folder, script, *arguments):
    done = subprocess.run(
        [sys.executable, str(FINDINGS / script), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_geometries(tmp_path):
    said = run(tmp_path, "geometries.py", "train", "muon", "--lr", "1e-3", "--steps", "6", "--trace", "run.h5")
    assert said.startswith("muon, lr 0.001: loss ")
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0, 5]
        assert trace.status_counts() == {"measured": 2}
        steepness = {norm: trace.curvature(norm=norm)["steepness"].median() for norm in ("l2", "linf", "spectral")}
    lines = [line.split() for line in run(tmp_path, "geometries.py", "table", "run.h5").splitlines()]
    assert [line[:2] for line in lines[1:]] == [["muon", norm] for norm in steepness]
    for line, value in zip(lines[1:], steepness.values(), strict=True):
        assert float(line[2]) == pytest.approx(value, rel=0.01)


@pytest.mark.slow
def test_short_segments(tmp_path):
    run(tmp_path, "short_segments.py", "train", "--gelu", "--steps", "1", "--trace", "run.h5")
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0]
        assert trace.gammas[0] == 0.01
    write_small_trace(tmp_path / "small.h5")
    count, heads, *lines = run(tmp_path, "short_segments.py", "table", "small.h5", "--after", "0").splitlines()
    assert heads.split()[0] == "gamma"
    values = [[float(text) for text in line.split()] for line in lines]
    with lsmooth.Trace(tmp_path / "small.h5") as trace:
        assert [row[0] for row in values] == pytest.approx(trace.gammas, rel=0.01)
        found = trace.smoothness()
    assert count == f"{len(found)} measured steps"
    # Curvature hardly differs along these short steps.
    for row in values:
        assert row[2] == pytest.approx(found["smoothness"].median(), rel=0.2)
        assert row[3] == pytest.approx(found["smoothness"].corr(found["grad_norm"], "spearman"), abs=0.2)


def test_geometries_of_two_runs_are_drawn(tmp_path):
    write_small_trace(tmp_path / "normed.h5", norms=("linf", "spectral"))
    run(tmp_path, "geometries.py", "figure", "normed.h5", "normed.h5", "-o", "figure.png")
    assert plt.imread(tmp_path / "figure.png").shape[:2] == (600, 1200)
