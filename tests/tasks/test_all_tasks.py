"""What holds of every task: it trains, traces, draws, resumes exactly, and learns something at its small size."""

import os
import resource
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from tiny_tasks import TINY

import lsmooth
from lsmooth import tasks
from lsmooth.cli import main
from lsmooth.tasks.plan import make_plan
from lsmooth.tasks.task import Task
from lsmooth.trace.layout import Status


@pytest.fixture(scope="module")
def plans():
    """Return a plan of six tiny steps, and the stand-in, of each task."""
    return {name: make_plan(name, changes={**changes, "steps": 6, "report_every": 6}) for name, changes in TINY.items()}


def test_every_task_is_there():
    assert set(tasks.NAMES) == set(TINY)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_a_task_says_what_it_is(name):
    task = tasks.get(name)
    assert isinstance(task, Task)
    assert task.name == name
    for text in (task.summary, task.figure, task.files, task.hub):
        assert text
    assert task.optimizer in lsmooth.optim.NAMES
    for optimizer in lsmooth.optim.NAMES:
        for preset in ("paper", "small"):
            chosen = task.optimizer_defaults(optimizer, preset)
            assert set(chosen) <= set(lsmooth.optim.hyperparameters(optimizer))
            weights = [torch.nn.Parameter(torch.ones(2))]
            assert lsmooth.optim.build(optimizer, weights, **chosen)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_one_command_trains_and_traces_and_another_draws(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [part for key, value in TINY[name].items() for part in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(
        main, ["train", name, *sets, "--steps", "6", "--every", "2", "--coordinates", "1", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    with lsmooth.Trace(f"{name}.h5") as trace:
        assert trace.steps.tolist() == [0, 2, 4]
        assert (trace.status == Status.MEASURED).all()
        assert trace.metadata["user_metadata"]["task"] == name
    drawn = CliRunner().invoke(main, ["plot", f"{name}.h5", "-o", "figure.png"])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "figure.png").stat().st_size > 5_000


@pytest.mark.parametrize("name", tasks.NAMES)
def test_a_run_resumes_exactly(name, plans):
    plan, data = plans[name]
    whole = plan.start(data)
    losses = [(whole.step, whole.loss.item()) for _ in whole.steps()]

    begun = plan.start(data)
    for step in begun.steps():
        if step == 3:
            break
    # Other draws in between do not matter.
    state = begun.state_dict()
    torch.rand(7)
    resumed = plan.start(data)
    resumed.load_state_dict(state)
    assert [(resumed.step, resumed.loss.item()) for _ in resumed.steps()] == losses[3:]
    for key, value in whole.problem.model.state_dict().items():
        assert torch.equal(value, resumed.problem.model.state_dict()[key]), key


@pytest.mark.parametrize("name", tasks.NAMES)
def test_the_seed_decides_everything(name, plans):
    plan, data = plans[name]

    def losses(seed):
        problem = plan.__class__(**{**plan.__dict__, "seed": seed}).start(data).problem
        torch.manual_seed(5)
        return [problem.loss(batch, None)[0].item() for batch, _ in zip(problem.batches(0), range(2), strict=False)]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_a_loss_is_the_same_again_and_leaves_no_mark(name, plans):
    """Measured steps evaluate the loss again and again, on the same batch and carried state."""
    plan, data = plans[name]
    problem = plan.start(data).problem
    batches = problem.batches(0)
    torch.manual_seed(1)
    _, carried = problem.loss(next(batches), None)
    batch = next(batches)
    buffers = {key: value.clone() for key, value in problem.model.named_buffers()}
    found = []
    for _ in range(2):
        torch.manual_seed(2)
        for key, value in problem.model.named_buffers():
            value.copy_(buffers[key])
        found.append(problem.loss(batch, carried)[0].item())
    assert found[0] == found[1]


@pytest.mark.parametrize("name", tasks.NAMES)
def test_mixed_precision_gives_about_the_same_loss(name, plans):
    if name == "transformer-translation" and torch.__version__ < (2, 5):
        pytest.skip("PyTorch 2.4 overlooks autocast on the CPU where it evaluates nn.TransformerEncoder")
    plan, data = plans[name]
    problem = plan.start(data).problem
    problem.model.eval()
    batches = problem.batches(0)
    first, second = next(batches), next(batches)
    with torch.no_grad():
        _, carried = problem.loss(first, None)
        plain, _ = problem.loss(second, carried)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, carried = problem.loss(first, None)
            mixed, _ = problem.loss(second, carried)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0.02)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", tasks.NAMES)
def test_batches_and_losses_wait_for_nothing_on_the_gpu(name):
    if name == "gpt2":
        pytest.skip("Hugging Face's model looks for packed sequences on the host")
    plan, data = make_plan(name, changes=TINY[name], device="cuda")
    problem = plan.start(data).problem
    losses, carried = [], None
    try:
        for number, batch in enumerate(problem.batches(0)):
            if number == 1:
                # The first batch of an epoch may set up what the epoch needs.
                torch.cuda.set_sync_debug_mode("error")
            if number == 4:
                break
            loss, carried = problem.loss(batch, carried)
            losses.append(loss.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.NAMES)
def test_the_small_preset_gets_below_its_baseline_in_two_minutes(name, tmp_path):
    """200 steps, every tenth of them measured, on one core, in at most the processor time of two minutes on two."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "lsmooth.cli", "train", name, "--device", "cpu", "--set", "report_every=50"],
        cwd=tmp_path,
        # Threads that wait for a core that others use would count as busy.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2 * 120
    from lsmooth.tasks.checkpoint import checkpoint_path, load_checkpoint

    checkpoint = load_checkpoint(checkpoint_path(tmp_path / f"{name}.h5"))
    plan, data = make_plan(name)
    baseline = plan.start(data).problem.baseline()
    assert baseline.name in ("unigram entropy", "ln 10")
    assert checkpoint.run["reports"][-1]["step"] == 200
    assert checkpoint.run["reports"][-1]["train_loss"] < baseline.loss
    with lsmooth.Trace(tmp_path / f"{name}.h5") as trace:
        assert len(trace) == 20
        assert (trace.status == Status.MEASURED).all()
