"""Hugging Face's and Lightning's Trainers over two processes: the trace of one process with the whole batch."""

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import lsmooth

for name in ("transformers", "accelerate", "lightning"):
    pytest.importorskip(name)

SCRIPT = Path(__file__).with_name("frameworks.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frameworks")
    # One process with the whole batch is this one.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*At step")
        runpy.run_path(str(SCRIPT))["main"](folder)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "At step" not in done.stderr
    return folder


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("framework", ["trainer", "lightning"])
def test_two_processes_are_measured_as_one(framework, folder):
    with lsmooth.Trace(folder / f"{framework}.1.h5") as one, lsmooth.Trace(folder / f"{framework}.2.h5") as two:
        assert two.parameters == one.parameters
        assert one.status_counts() == two.status_counts() == {"measured": 4}
        for name in ("loss", "loss_along", "loss_next", "grad_norm", "step_norm", "grad_diff"):
            values = one.read(name)
            np.testing.assert_allclose(
                two.read(name), values, rtol=1e-4, atol=1e-5 * np.abs(values).max(), err_msg=name
            )
