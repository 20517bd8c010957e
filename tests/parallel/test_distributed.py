"""Runs over several processes: the trace of one process with the whole batch, and nothing changed on any rank."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lsmooth
from lsmooth.trace.layout import FIELDS

WORKER = Path(__file__).with_name("worker.py")
SAME = ["ddp", "ddp-view-adam", "ddp-accumulated", "ddp-watched", "fsdp", "fsdp-adam", "fsdp-watched", "fsdp-deferred",
        "ddp-resumed", "ddp-probes", "fsdp-probes", "fsdp-linf", "ddp-norms",
        "ddp-exact", "fsdp-exact", "ddp-compiled", "fsdp-compiled",
        "ddp-several", "ddp-several-watched", "fsdp-several", "fsdp-several-watched",
        "ddp-large", "ddp-large-accumulated", "ddp-large-watched", "ddp-large-compiled",
        "fsdp-large", "fsdp-large-watched", "fsdp-large-deferred"]  # fmt: skip
OTHERS = ["ddp-noisy", "ddp-large-noisy", "ddp-large-uneven", "fsdp-noisy", "ddp-static", "fsdp-mixed",
          "ddp-communication", "fsdp-communication", "linf-communication", "ddp-unwritable", "fsdp-unwritable",
          "refusals"]  # fmt: skip
# First, while there is nothing else that may be freed on the way.
MEMORY = ["ddp-memory", "ddp-accumulated-memory", "fsdp-memory"]
CASES = {
    2: [*MEMORY, *SAME, *OTHERS],
    4: ["ddp-large", "ddp-accumulated", "fsdp-watched", "hsdp", "hsdp-linf", "hsdp-large", "mesh-refusals"],
}
SHARDING = torch.__version__ >= (2, 6)
if not SHARDING:
    CASES = {size: [case for case in cases if case.startswith("ddp")] for size, cases in CASES.items()}
    MEMORY = [case for case in MEMORY if case.startswith("ddp")]

needs_sharding = pytest.mark.skipif(not SHARDING, reason="fully_shard is public from PyTorch 2.6 on")
pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


def torchrun(size, folder, *cases, check=True):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run(
        [*command, str(WORKER), str(folder), *cases],
        # What is freed goes back to the system at once: the peak of memory is counted there. There may be fewer GPUs
        # than processes.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    for size, cases in CASES.items():
        torchrun(size, folder, *cases)
    return folder


def results(folder, case, size):
    return [json.loads((folder / f"{case}.{size}.rank{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Traces of one process with the whole batch, in this process; made once a case."""
    sys.path.insert(0, str(WORKER.parent))
    try:
        import worker
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("alone")

    def path(case):
        target = folder / f"{case}.h5"
        if not target.exists():
            worker.CASES[case](target)
        return target

    return path


@pytest.mark.parametrize(("case", "size"), [(case, size) for size in CASES for case in CASES[size] if case in SAME])
def test_the_trace_is_that_of_one_process_with_the_whole_batch(case, size, folder, alone):
    with lsmooth.Trace(folder / f"{case}.{size}.h5") as trace, lsmooth.Trace(alone(case)) as expected:
        assert len(trace) == len(expected) == 6
        assert trace.status_counts() == expected.status_counts() == {"measured": 6}
        assert trace.parameters == expected.parameters
        assert trace.parameter_sizes.tolist() == expected.parameter_sizes.tolist()
        assert trace.coordinate_names == expected.coordinate_names
        names = {field.name for field in FIELDS if trace.has(field.name)} - {"time", "step", "status"}
        assert {"loss", "loss_along", "loss_next", "grad_diff", "coordinate/grad_along"} <= names
        assert ("grad_noise" in names) == case.endswith("probes")
        for name in names:
            values = expected.read(name)
            scale = np.abs(values).max()
            np.testing.assert_allclose(trace.read(name), values, rtol=2e-5, atol=2e-6 * scale, err_msg=name)


def test_a_continued_trace_goes_on_on_every_rank(folder):
    assert [result["began"] for result in results(folder, "ddp-resumed", 2)] == [3, 3]


@needs_sharding
def test_the_trace_says_how_many_took_part(folder, alone):
    with lsmooth.Trace(folder / "fsdp-watched.4.h5") as trace, lsmooth.Trace(alone("fsdp-watched")) as expected:
        assert trace.metadata["objective"] == "the step's mini-batch loss, mean over 4 ranks"
        assert expected.metadata["objective"] == "the step's mini-batch loss"


@needs_sharding
@pytest.mark.parametrize("case", ["hsdp", "hsdp-linf", "hsdp-large"])
def test_a_mesh_that_holds_copies_of_shards(case, folder, alone):
    with lsmooth.Trace(folder / f"{case}.4.h5") as trace, lsmooth.Trace(alone(case)) as expected:
        names = {field.name for field in FIELDS if trace.has(field.name)} - {"time", "step", "status"}
        assert ("linf/step_norm" in names) == case.endswith("linf")
        for name in names:
            values = expected.read(name)
            np.testing.assert_allclose(trace.read(name), values, rtol=2e-5, atol=2e-6 * np.abs(values).max())


@pytest.mark.parametrize(
    ("case", "size"),
    [
        (case, size)
        for size in CASES
        for case in CASES[size]
        if not case.endswith(("communication", "memory", "probes", "usals", "unwritable"))
    ],
)
def test_no_rank_is_changed(case, size, folder):
    for result in results(folder, case, size):
        assert result["changed"] == []
    with lsmooth.Trace(folder / f"{case}.{size}.h5") as trace:
        assert trace.status_counts() == {"measured": 6}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of memory")
@pytest.mark.parametrize("case", MEMORY)
def test_a_measured_step_holds_three_copies_and_under_accumulation_a_gradient_more(case, folder):
    # x_t, x_{t+1}, grad f(x_t), and the gradient of the point being evaluated: as it arrives, or all of it, where
    # several backward passes add to it. Copies of inputs and pieces of products weigh more against a half of so small a
    # model.
    least, most = {"ddp-memory": (3.1, 3.7), "ddp-accumulated-memory": (3.9, 4.5), "fsdp-memory": (3.2, 4.3)}[case]
    for result in results(folder, case, 2):
        assert least < result["copies"] <= most


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of memory")
@pytest.mark.parametrize("case", ["ddp-large-memory", pytest.param("fsdp-large-memory", marks=needs_sharding)])
def test_a_measured_step_of_a_large_model_holds_little_more_than_three_copies(case, tmp_path):
    torchrun(2, tmp_path, case)
    for result in results(tmp_path, case, 2):
        assert 3.05 < result["copies"] <= 3.25


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@pytest.mark.parametrize("case", ["ddp-inductor", pytest.param("fsdp-inductor", marks=needs_sharding)])
def test_models_compiled_to_machine_code(case, tmp_path, alone):
    torchrun(2, tmp_path, case)
    for result in results(tmp_path, case, 2):
        assert result["changed"] == []
    with lsmooth.Trace(tmp_path / f"{case}.2.h5") as trace, lsmooth.Trace(alone("ddp")) as expected:
        assert trace.parameters == expected.parameters
        for name in ("loss", "loss_along", "grad_norm", "grad_diff", "step_norm", "coordinate/grad_along"):
            values = expected.read(name)
            np.testing.assert_allclose(trace.read(name), values, rtol=2e-5, atol=2e-6 * np.abs(values).max())


def test_replicas_join_losses_in_one_small_all_reduce(folder):
    for result in results(folder, "ddp-communication", 2):
        steps = result["steps"]
        training = steps[1]["reduced"]
        assert len(training) == 1
        # Six points, each with the all-reduce that averages its gradient, and one of seven losses; the first measured
        # step is evaluated at x_t once more.
        assert steps[2]["reduced"] == training * 7 + [7]
        assert steps[0]["reduced"] == training * 8 + [7]
        assert steps[3]["reduced"] == training


@needs_sharding
def test_shards_join_norms_in_one_all_reduce(folder):
    for result in results(folder, "fsdp-communication", 2):
        training, measured = result["steps"][1], result["steps"][2]
        assert training["reduced"] == []
        assert set(measured["calls"]) == {*training["calls"], "allreduce_"}
        for name, count in training["calls"].items():
            assert measured["calls"][name] == 7 * count, name
        # Losses at 7 points; the slope; gradient, step, weights, 6 changes, 7 products with the step of 6 tensors; 8
        # numbers of 6 followed coordinates; and what it takes to judge the step: norms of gradients that were there
        # before and of what edited them, rounding, replay error.
        assert measured["reduced"] == [7 + 1 + 16 * 6 + 8 * 6 + 4]


@needs_sharding
def test_largest_entries_of_shards_are_joined_in_a_second_all_reduce(folder):
    for result in results(folder, "linf-communication", 2):
        # In the first, 1-norms of the gradient and of 6 changes of 6 tensors more; in the second, 6 steps.
        assert result["steps"][2]["reduced"] == [7 + 1 + 23 * 6 + 8 * 6 + 4, 6]


@pytest.mark.parametrize("wrap", ["ddp", pytest.param("fsdp", marks=needs_sharding)])
def test_where_nothing_can_be_written_all_ranks_train_on_without_measuring(folder, wrap):
    case = f"{wrap}-unwritable"
    path = folder / f"{case}.2.h5"
    for rank, result in enumerate(results(folder, case, 2)):
        assert result["changed"] == []
        assert result["failure"].startswith(f"{path} cannot be written (File too large)")
        told = f"Nothing of this run is recorded, and training goes on: {result['failure']}"
        assert result["told"] == ([told] if rank == 0 else [])
        bare, watched = result["calls"]
        assert watched == bare != {}
        assert result["kept"] == [6, 0]
    assert not path.exists()


@needs_sharding
def test_what_cannot_be_measured_is_refused_on_every_rank(folder):
    sentences = {
        "unwrapped": "neither wrapped in DistributedDataParallel nor sharded",
        "exists": "exists already; choose another name",
        "disagree": "their every differ",
        "densities": "counts the coordinates that one process holds",
        "spectral": "spectral/grad_norm cannot be joined from the shards of fully_shard; leave it out",
        "hooked": "communication hook powerSGD_hook",
        "partly": "inner.0.weight is not sharded while other parameters are",
        "tensor-parallel": "inner.0.weight has the layout (Shard(dim=0),), which fully_shard alone does not make",
        "pipeline": "neither wrapped in DistributedDataParallel nor sharded",
        "other-parameters": "their parameters differ",
        "uneven": "weight is sharded unevenly",
    }
    check_refusals(results(folder, "refusals", 2), sentences)
    assert (folder / "refusals.2.h5.exists").read_bytes() == b""
    assert {path.name for path in folder.glob("refusals*")} == {
        "refusals.2.h5.exists", "refusals.2.rank0.json", "refusals.2.rank1.json"
    }  # fmt: skip


@needs_sharding
def test_meshes_that_cannot_be_measured_are_refused_on_every_rank(folder):
    sentences = {
        "column": "Shard(dim=0)), which fully_shard alone does not make; tensor parallelism is not measured",
        "row": "0.weight has the layout (Shard(dim=0), Shard(dim=1)), which fully_shard alone does not make",
        "submesh": "inner.0.weight is sharded over 2 of 4 ranks; a recorder measures one model over all ranks",
        "two-meshes": "Some parameters are replicated on more ranks than others",
        "subgroup": "DistributedDataParallel averages over some of the ranks only",
    }
    check_refusals(results(folder, "mesh-refusals", 4), sentences)


def check_refusals(told, sentences):
    for result in told:
        assert result["said"].keys() == sentences.keys()
        for name, sentence in sentences.items():
            assert sentence in result["said"][name]
            assert "\n" not in result["said"][name]


def test_a_rank_that_dies_leaves_a_readable_trace_and_no_hang(tmp_path):
    done = torchrun(2, tmp_path, "ddp-dies", check=False)
    assert done.returncode != 0
    with lsmooth.Trace(tmp_path / "ddp-dies.2.h5") as trace:
        assert trace.steps.tolist() == [0, 1, 2]
        assert trace.status_counts() == {"measured": 3}
        assert np.isfinite(trace.smoothness()["smoothness"]).all()
