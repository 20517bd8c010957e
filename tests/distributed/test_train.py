"""`lsmooth train` under torchrun: the same run as with one process, to rounding."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import lsmooth
from lsmooth import tasks
from lsmooth.tasks.parallel import part_of

ARGUMENTS = ["train", "transformer-encoder", "--steps", "4", "--every", "2", "--seed", "3", "--set", "dropout=0",
             "--set", "report_every=2", "--set", "embedding=16", "--set", "feed_forward=16"]  # fmt: skip


def run(folder, trace, *options, size=1):
    command = ["-m", "lsmooth.cli", *ARGUMENTS, "--trace", trace, *options]
    if size > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *command]
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_processes_share_each_batch_of_the_same_run(tmp_path):
    alone, together = run(tmp_path, "one.h5"), run(tmp_path, "two.h5", size=2)
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, together.stderr
    lines = [line for line in together.stderr.splitlines() if line.startswith("step")]
    assert len(lines) == 2
    assert lines == [line for line in alone.stderr.splitlines() if line.startswith("step")]
    assert "2 processes" in together.stderr
    assert together.stdout.count("Wrote two.h5 (2 measured steps).") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"one.h5", "one.checkpoint.pt", "two.h5"}
    with lsmooth.Trace(tmp_path / "one.h5") as one, lsmooth.Trace(tmp_path / "two.h5") as two:
        assert two.parameters == one.parameters
        assert two.steps.tolist() == [0, 2]
        assert two.metadata["user_metadata"] == one.metadata["user_metadata"]
        for name in ("loss", "loss_along", "grad_norm", "step_norm", "grad_diff", "coordinate/grad_along"):
            values = one.read(name)
            np.testing.assert_allclose(two.read(name), values, rtol=1e-4, atol=1e-5 * np.abs(values).max())

    again = run(tmp_path, "two.h5", size=2)
    assert again.returncode != 0
    assert "two.h5 exists already; choose another --trace, or --force" in again.stderr
    resumed = run(tmp_path, "two.h5", "--resume", size=2)
    assert resumed.returncode != 0
    assert "leave no checkpoint to resume from" in resumed.stderr


SMALL = {
    "transformer-encoder": {"embedding": 16, "feed_forward": 16, "batch_size": 7},
    "transformer-translation": {"width": 16, "feed_forward": 16, "layers": 1, "batch_size": 7},
    "gpt2": {"width": 20, "feed_forward": 16, "layers": 1, "context": 16, "batch_size": 7},
    "resnet20": {"width": 4, "batch_size": 7},
    "awd-lstm": {"hidden": 16, "embedding": 16, "batch_size": 7},
}


@pytest.mark.parametrize("name", tasks.NAMES)
@pytest.mark.parametrize("size", [3, 9])
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch(name, size):
    if name == "gpt2":
        pytest.importorskip("transformers")
    task = tasks.get(name)
    problem = task.build(task.settings("small").replaced(SMALL[name]), task.find_data(None), seed=0)
    # Without dropout, and with batch norm's kept statistics: those of a part of the batch are others.
    problem.model.eval()
    for batch in (batch for batch, _ in zip(problem.batches(0), range(2), strict=False)):
        with torch.no_grad():
            whole, _ = problem.loss(batch, None)
            parts = [part_of(batch, rank, size, sums=problem.loss_is_a_sum) for rank in range(size)]
            losses = torch.stack([problem.loss(part, None)[0] * weight for part, weight in parts])
        torch.testing.assert_close(losses.mean(), whole, rtol=1e-5, atol=1e-6)
