"""`lsmooth train` under torchrun: the same run as with one process, to rounding."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lsmooth
from lsmooth.tasks.checkpoint import load_checkpoint
from lsmooth.trace.layout import FIELDS

ARGUMENTS = ["train", "transformer-encoder", "--steps", "4", "--every", "2", "--seed", "3", "--set", "dropout=0",
             "--set", "report_every=2", "--set", "embedding=16", "--set", "feed_forward=16"]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def torchrun(folder, *arguments):
    """Start `lsmooth` as a user does to train on two processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lsmooth.cli",
         *arguments],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def forked():
    """A function that runs `lsmooth` on ranks forked from a process that has imported PyTorch already."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ranks.py"))],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip

        def run(folder, size, *arguments):
            out, err = folder / "out.txt", folder / "err.txt"
            request = {"size": size, "arguments": arguments, "folder": folder, "out": out, "err": err}
            print(json.dumps(request, default=str), file=parent.stdin, flush=True)
            code = max(json.loads(parent.stdout.readline()), key=abs)
            done = subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())
            out.unlink()
            err.unlink()
            return done

        yield run
        parent.stdin.close()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_processes_share_each_batch_of_the_same_run(tmp_path, forked):
    alone = forked(tmp_path, 1, *ARGUMENTS, "--trace", "one.h5")
    with torchrun(tmp_path, *ARGUMENTS, "--trace", "two.h5") as together:
        out, err = together.communicate(timeout=600)
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, err
    lines = [line for line in err.splitlines() if re.match(r"step +\d+ \(", line)]
    assert len(lines) == 2
    assert lines == [line for line in alone.stderr.splitlines() if re.match(r"step +\d+ \(", line)]
    assert "2 processes" in err
    assert out.count("Wrote two.h5 (2 measured steps) and two.h5.checkpoint.pt.") == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "one.h5", "one.h5.checkpoint.pt", "two.h5", "two.h5.checkpoint.pt"
    }  # fmt: skip
    with lsmooth.Trace(tmp_path / "one.h5") as one, lsmooth.Trace(tmp_path / "two.h5") as two:
        assert two.parameters == one.parameters
        assert two.steps.tolist() == [0, 2]
        described = [trace.metadata["user_metadata"] for trace in (one, two)]
        assert len({each.pop("run_id") for each in described}) == 2
        assert described[0] == described[1]
        for name in ("loss", "loss_along", "grad_norm", "step_norm", "grad_diff", "coordinate/grad_along"):
            values = one.read(name)
            np.testing.assert_allclose(two.read(name), values, rtol=1e-4, atol=1e-5 * np.abs(values).max())

    again = forked(tmp_path, 2, *ARGUMENTS, "--trace", "two.h5")
    assert again.returncode != 0
    assert "two.h5 exists already; choose another --trace, or --resume to continue it, or --force" in again.stderr
    for trace, size, sentence in (
        ("two.h5", 1, "two.h5 was begun with 2 processes, not 1; resume it under torchrun with 2 processes."),
        ("one.h5", 2, "one.h5 was begun with 1 process, not 2; resume it without torchrun."),
    ):
        resumed = forked(tmp_path, size, *ARGUMENTS, "--trace", trace, "--resume")
        assert resumed.returncode != 0
        assert sentence in resumed.stderr


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_processes_share_each_probe(tmp_path, forked):
    """A sum over tokens, and a mean: both are those of the whole probe."""
    for task, more in (
        ("transformer-encoder", ["--set", "embedding=8", "--set", "heads=1", "--set", "sequence=6"]),
        ("transformer-translation", ["--set", "width=8", "--set", "heads=1", "--set", "layers=1"]),
    ):
        arguments = [
            "train",
            task,
            "--steps",
            "4",
            "--every",
            "2",
            "--probe",
            "10",
            "--probe-size",
            "5",
            *more,
            "--set",
            "dropout=0",
            "--set",
            "feed_forward=8",
            "--set",
            "batch_size=6",
            "--device",
            "cpu",
        ]
        for size in (1, 2):
            done = forked(tmp_path, size, *arguments, "--trace", f"{task}{size}.h5")
            assert done.returncode == 0, done.stderr
        with lsmooth.Trace(tmp_path / f"{task}1.h5") as one, lsmooth.Trace(tmp_path / f"{task}2.h5") as two:
            assert two.metadata["probe_size"] == 5
            for name in ("loss", "loss_along", "grad_norm", "grad_diff", "grad_noise"):
                values = one.read(name)
                np.testing.assert_allclose(two.read(name), values, rtol=1e-3, atol=1e-4 * np.abs(values).max())


# State is carried from batch to batch, and each rank has dropout masks of its own.
CARRIED = ["train", "awd-lstm", "--every", "3", "--set", "report_every=7", "--set", "hidden=16",
           "--set", "embedding=16", "--set", "batch_size=6", "--device", "cpu"]  # fmt: skip


def assert_same(one, two):
    with lsmooth.Trace(one) as a, lsmooth.Trace(two) as b:
        assert a.steps.tolist() == b.steps.tolist()
        for field in FIELDS:
            if b.has(field.name) and field.name != "time":
                np.testing.assert_array_equal(a.read(field.name), b.read(field.name), err_msg=field.name)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("ending", ["killed", "asked"])
def test_a_run_of_two_processes_resumes_to_the_same_trace_bit_for_bit(ending, tmp_path, forked):
    arguments = [*CARRIED, "--trace", "run.h5", "--steps", "100000", "--checkpoint-every", "0"]
    with torchrun(tmp_path, *arguments) as process:
        for line in process.stderr:
            if re.match("step +14 ", line):
                break
        if ending == "killed":
            # A worker, as a lack of memory does it.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    reached = load_checkpoint(tmp_path / "run.h5.checkpoint.pt").run["position"]["step"]
    assert reached >= 12
    if ending == "asked":
        again = "torchrun --nproc-per-node 2 -m lsmooth.cli train --resume --trace run.h5"
        assert output == f"Stopped after step {reached} of 100000; continue with: {again}\n"
    resume = ["train", "--resume", "--trace", "run.h5"]
    done = forked(tmp_path, 2, *resume, "--steps", str(reached + 8))
    assert done.returncode == 0, done.stderr
    assert f"from step {reached}" in done.stderr
    done = forked(tmp_path, 2, *CARRIED, "--trace", "whole.h5", "--steps", str(reached + 8))
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run.h5", tmp_path / "whole.h5")
    if ending == "asked":
        done = forked(tmp_path, 2, *resume)
        assert done.stdout == (
            f"run.h5: all {reached + 8} steps are done; give a larger --steps or --epochs to continue.\n"
        )
