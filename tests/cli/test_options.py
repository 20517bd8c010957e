"""Hyperparameters, devices and sizes of a training run: taken, or refused in one sentence."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from hostile_values import TEXTS
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lsmooth import optim, tasks
from lsmooth.cli import main
from lsmooth.errors import InvalidArgumentError
from lsmooth.tasks.comparison import contestants
from lsmooth.tasks.plan import check_device, make_plan

# Each example reads a fixture that none of them changes.
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module")
def plans():
    """Return a small plan of each task."""
    return {name: make_plan(name)[0] for name in tasks.NAMES}


def keys():
    for task in tasks.NAMES:
        for field in dataclasses.fields(tasks.get(task).settings("small")):
            yield pytest.param(task, None, field.name, id=f"{task} {field.name}")
    for name in optim.NAMES:
        for key in optim.hyperparameters(name):
            yield pytest.param("transformer-encoder", name, f"optimizer.{key}", id=f"{name} {key}")


def numbers_in(value):
    return [number for item in value for number in numbers_in(item)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize(("task", "optimizer", "key"), list(keys()))
@given(text=TEXTS)
@example(text="nan")
@example(text="12345678901234567890")
@example(text="1e308")
@example(text="inf,inf")
@settings(max_examples=20, deadline=None, suppress_health_check=SHARED)
def test_a_hyperparameter_is_finite_and_fits_or_is_refused_in_a_sentence(plans, task, optimizer, key, text):
    plan = plans[task]
    if optimizer is not None:
        plan = dataclasses.replace(plan, optimizer=optimizer, hyperparameters={})
    name = key.removeprefix("optimizer.")
    try:
        changed = plan.with_hyperparameters({key: text})
    except InvalidArgumentError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert name in refused or "heads=" in refused
        return
    value = changed.settings[key] if optimizer is None else changed.hyperparameters[name]
    for number in numbers_in(value):
        if isinstance(number, (int, float)):
            assert abs(number) <= (10**9 if isinstance(number, int) else 3.4e38)


@given(text=TEXTS, key=st.sampled_from(["lr", "betas", "batch_size", "dropout", "max_norm", "augment", "eps"]))
@example(text="nan", key="lr")
@example(text="0.33", key="batch_size")
@example(text="0.5", key="batch_size")
@example(text="1", key="augment")
@settings(max_examples=150, deadline=None, suppress_health_check=SHARED)
def test_a_multiple_of_the_grid_is_a_number_of_its_kind_or_is_refused(plans, text, key):
    task = "resnet20" if key == "augment" else "transformer-encoder"
    plan = dataclasses.replace(plans[task], optimizer="adam", hyperparameters={"lr": 0.01})
    try:
        (found,) = contestants({"adam": plan}, {key: [f"x{text}"]})
    except InvalidArgumentError:
        return
    (candidate,) = found.candidates.values()
    value = {**candidate.settings, **candidate.hyperparameters}[key]
    own = {**plan.settings, **optim.hyperparameters("adam"), **plan.hyperparameters}[key]
    assert type(value) is type(own)
    assert value == own * float(text)


@given(name=st.sampled_from(["hpu", "xpu", "mps", "meta", "cuda", "cuda:99", "cpu:-1", "cpu:" + "9" * 20]) | TEXTS)
@example(name="hpu")
@example(name="meta")
@settings(max_examples=60, deadline=None)
def test_a_device_computes_here_or_is_refused_in_a_sentence(name):
    try:
        check_device(name)
    except InvalidArgumentError:
        return

    assert torch.ones(2, device=name).sum().item() == 2


TINY = [f"--set={pair}" for pair in ("embedding=8", "heads=1", "feed_forward=8", "sequence=6", "batch_size=4")]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--lr", value) for value in ("nan", "inf", "1e308", "-1")),
        *(("--seed", value) for value in ("-1", "12345678901234567890")),
        *((name, "12345678901234567890") for name in ("--steps", "--every", "--epochs", "--coordinates")),
        *(("--checkpoint-every", value) for value in ("nan", "inf")),
        ("--device", "hpu"),
        ("--device", "meta"),
    ],
)
@pytest.mark.parametrize("resume", [False, True], ids=["begun", "resumed"])
def test_train_refuses_what_it_cannot_use(tmp_path, monkeypatch, option, value, resume):
    monkeypatch.chdir(tmp_path)
    how = ["--resume", "--trace=run.h5"] if resume else ["transformer-encoder", *TINY, "--steps=1"]
    if resume and option == "--device":
        begun = CliRunner().invoke(main, ["train", "transformer-encoder", *TINY, "--steps=1", "--trace=run.h5"])
        assert begun.exit_code == 0, begun.output
    done = CliRunner().invoke(main, ["train", *how, f"{option}={value}"])
    assert done.exit_code == 2, done.output
    assert option in done.stderr.splitlines()[-1]
    assert isinstance(done.exception, SystemExit)
    assert resume or not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed=4294967295", "--every=1000000000", "--coordinates=1000000000", "--checkpoint-every=1000000000"],
        ["--lr=0", "--seed=0", "--every=1", "--coordinates=0", "--checkpoint-every=0"],
        ["--lr=3e38"],
        ["--epochs=1000000000"],
    ],
)
def test_the_largest_and_smallest_numbers_work(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["train", "transformer-encoder", *TINY, *arguments, "--steps=2", "--device=cpu"])
    assert isinstance(done.exception, SystemExit | None), done.exception
    # Training diverges at an absurd learning rate, and the command says so.
    assert done.exit_code == (1 if "--lr=3e38" in arguments else 0), done.output


SIZES = {
    "embedding": "1000000000",
    "heads": "1000000000",
    "feed_forward": "1000000000",
    "layers": "1000",
    "sequence": "1000000000",
    "batch_size": "1000000000",
}
# In a process that may have 3 GB of addresses, so that the machine itself is never short of memory. One process for all
# sizes: starting it takes longer than most of them.
BEYOND_THE_MEMORY = """
import json, resource, sys
from click.testing import CliRunner
from lsmooth.cli import main
import lsmooth.tasks.session

resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
said = {}
for size, arguments in json.loads(sys.argv[1]).items():
    done = CliRunner().invoke(main, ["train", "transformer-encoder", *arguments])
    said[size] = (done.exit_code, type(done.exception).__name__, done.stderr)
    del done
print(json.dumps(said))
"""


def test_sizes_beyond_the_memory_end_in_a_sentence(tmp_path):
    arguments = {size: [*TINY, f"--set={size}={value}", "--device=cpu", "--steps=1"] for size, value in SIZES.items()}
    arguments["layers"].append("--set=feed_forward=1000000")
    done = subprocess.run(
        [sys.executable, "-c", BEYOND_THE_MEMORY, json.dumps(arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said.keys() == SIZES.keys()
    for size, (code, exception, stderr) in said.items():
        assert (code, exception) == (1, "SystemExit"), f"{size}: {stderr}"
        assert stderr.splitlines()[-1].startswith("Error: "), size
