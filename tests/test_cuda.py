"""What only a GPU can show: that nothing waits for it, what its memory holds, and CUDA's own ways to run a model."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import LOOPS, Bare, Recorded, batches, classify, differences, everything, mlp, seed_all, sgd, simple
from torch import nn

import lsmooth
from lsmooth.trace.layout import Status

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("device"),
]


@pytest.fixture
def device():
    with torch.device("cuda"):
        yield "cuda"


@contextlib.contextmanager
def waiting_refused():
    """Make whatever waits for the GPU an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_is_noticed():
    with waiting_refused(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(1).item()


def fixed_losses(model, count):
    return [lambda x=x, y=y: classify(model, x, y) for x, y in batches(count, seed=7)]


ARGUMENTS = {
    "plain": {},
    "graphs": {"cuda_graphs": True},
    "linf": {"norms": ("linf",), "gammas": (0.5, 1.0)},
    "densities": {"densities": True, "endpoint": False},
    "no coordinates": {"coordinates": 0},
    "probes": {"probe": 3},
    "offload": {"offload": True},
}


@pytest.fixture
def small_models_are_parked(monkeypatch):
    monkeypatch.setattr("lsmooth.replay.segment.taken_whole", lambda size, device: False)


@pytest.mark.usefixtures("small_models_are_parked")
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_measured_steps_and_their_handing_over_wait_for_nothing(arguments, clipped, tmp_path):
    seed_all()
    model = mlp(nn.Dropout(0.2), nn.BatchNorm1d(8))
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), capturable=True)
    if "probe" in arguments:
        arguments = {**arguments, "probe": fixed_losses(model, arguments["probe"])}
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", **arguments) as recorder:
        for step, (x, y) in enumerate(batches(4)):
            # Memory of the host is pinned once, which waits.
            with waiting_refused() if step or "offload" not in arguments else contextlib.nullcontext():
                optimizer.zero_grad()
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
                if clipped:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                # As when a block is full: nothing but starting to copy it is done here.
                recorder._recording.handover.flush()
            recorder.flush()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 4}
        assert trace.lr.ravel().tolist() == pytest.approx([0.01] * 4)


def test_a_scaled_step_waits_for_nothing_of_the_recorders(tmp_path):
    seed_all()
    model = mlp(nn.Dropout(0.2))
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    # A scaler reads whether to skip a step, just before it takes it.
    optimizer.register_step_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("error"))
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        optimizer.register_step_post_hook(lambda *_: torch.cuda.set_sync_debug_mode("default"))
        for x, y in batches(4):
            optimizer.zero_grad()
            with waiting_refused():
                recorder.backward(lambda x=x, y=y: classify(model, x, y), scaler)
            try:
                scaler.step(optimizer)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            scaler.update()
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 4}


def half_precision_with_overflows(watch):
    """Float16 under autocast, with a scale that overflows at first, as a scaler's does until it has found its own."""
    model = mlp(nn.Linear(8, 8))
    optimizer = sgd(model, 0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)
    watch.attach(model, optimizer)
    for x, y in batches(12):
        optimizer.zero_grad()

        def closure(x=x, y=y):
            with torch.autocast("cuda", dtype=torch.float16):
                return classify(model, x, y)

        watch.backward(closure, scaler)
        scaler.step(optimizer)
        scaler.update()
    watch.end()
    return model, optimizer


def test_float16_with_steps_that_the_scaler_skips(tmp_path):
    results = []
    for watch in (Bare(), Recorded(tmp_path / "run.h5")):
        seed_all()
        results.append(everything(*half_precision_with_overflows(watch)))
    assert differences(*results) == []
    counts = lsmooth.Trace(tmp_path / "run.h5").status_counts()
    assert counts["measured"] >= 4
    assert counts["measured"] + counts["no_displacement"] == 12


def compiled_by(mode):
    def loop(watch):
        model = mlp(nn.Linear(8, 8))
        fast = torch.compile(model, mode=mode)
        optimizer = sgd(model)
        watch.attach(model, optimizer)
        for x, y in batches(8):
            optimizer.zero_grad()
            watch.backward(lambda x=x, y=y: classify(fast, x, y))
            optimizer.step()
        watch.end()
        return model, optimizer

    return loop


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_models_are_measured_as_others_are(mode, tmp_path):
    """By Inductor, and with CUDA graphs, whose outputs the next run of the graph overwrites."""
    seed_all()
    bare = everything(*compiled_by(mode)(Bare()))
    torch._dynamo.reset()
    seed_all()
    recorded = everything(*compiled_by(mode)(Recorded(tmp_path / "run.h5")))
    assert differences(bare, recorded) == []
    seed_all()
    simple(*(lambda m: (m, sgd(m)))(mlp(nn.Linear(8, 8))), Recorded(tmp_path / "plain.h5"), steps=8)
    with lsmooth.Trace(tmp_path / "run.h5") as trace, lsmooth.Trace(tmp_path / "plain.h5") as plain:
        assert trace.status_counts() == {"measured": 8}
        for name in ("loss", "loss_along", "grad_norm", "grad_diff"):
            expected = plain.read(name)
            np.testing.assert_allclose(
                trace.read(name), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=name
            )


def test_the_same_run_on_the_cpu_gives_the_same_numbers(tmp_path):
    def run(where, path):
        seed_all()
        with torch.device("cpu"):
            model = mlp(nn.Linear(8, 8), dtype=torch.float64)
        model.to(where)
        with torch.device(where):
            simple(model, sgd(model), Recorded(path, densities=True, norms=("linf", "spectral")), dtype=torch.float64)

    run("cpu", tmp_path / "cpu.h5")
    run("cuda", tmp_path / "cuda.h5")
    with lsmooth.Trace(tmp_path / "cpu.h5") as host, lsmooth.Trace(tmp_path / "cuda.h5") as device:
        for name in (
            *("loss", "loss_along", "loss_next", "slope", "grad_norm", "step_norm", "grad_diff"),
            *(f"{norm}/{name}" for norm in ("linf", "spectral") for name in ("grad_norm", "step_norm", "grad_diff")),
            *(f"coordinate/{name}" for name in ("grad", "displacement", "grad_along", "grad_next")),
        ):
            np.testing.assert_allclose(device.read(name), host.read(name), rtol=1e-6, atol=1e-10, err_msg=name)
        for parameter in host.parameters:
            one, other = host.density(parameter).counts, device.density(parameter).counts
            # A point on an edge may fall to its other side.
            assert np.abs(one - other).sum() <= 2


def extra_copies(tmp_path, width=512, **arguments):
    """Return the peak of two measured steps above that of two without recorder, in copies of the parameters."""
    seed_all()
    model = nn.Sequential(*[layer for _ in range(40) for layer in (nn.Linear(width, width), nn.Tanh())])
    optimizer = sgd(model, momentum=0.9)
    x = torch.randn(2, width)
    size = sum(p.numel() * p.element_size() for p in model.parameters())

    def closure():
        return model(x).square().mean()

    def peak(backward):
        optimizer.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(2):
            optimizer.zero_grad()
            backward()
            optimizer.step()
        return torch.cuda.max_memory_allocated() - before

    def bare():
        return peak(lambda: closure().backward())

    bare()
    without = bare()
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", **arguments) as recorder:
        measured = peak(lambda: recorder.backward(closure))
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 2}
    return (measured - without) / size


def test_a_measured_step_holds_at_most_three_copies_more(tmp_path):
    assert 2.9 < extra_copies(tmp_path) <= 3.15


def test_densities_hold_two_copies_more(tmp_path):
    assert extra_copies(tmp_path, densities=True) <= 5.3


def test_with_offload_it_holds_two_copies_fewer(tmp_path):
    assert extra_copies(tmp_path, offload=True) <= 1.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parked_ends_give_the_same_bits(dtype, tmp_path):
    for name, offload in (("here", False), ("parked", True)):
        seed_all()
        # Above 8 MB, and one matrix that lies in another order.
        model = nn.Sequential(*(nn.Linear(1500, 1500) for _ in range(3))).to(dtype)
        model[1].weight.data = model[1].weight.data.T.contiguous().T
        optimizer = sgd(model, momentum=0.9)
        x = torch.randn(16, 1500, dtype=dtype)
        arguments = {"norms": ("linf",), "densities": True, "blocks": 2, "critical": True}
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{name}.h5", offload=offload, **arguments) as recorder:
            for _ in range(3):
                optimizer.zero_grad()
                recorder.backward(lambda: model(x).square().mean())  # noqa: B023
                optimizer.step()
    with lsmooth.Trace(tmp_path / "here.h5") as here, lsmooth.Trace(tmp_path / "parked.h5") as parked:
        assert len(here) == 3
        one, other = here.to_xarray(), parked.to_xarray()
        for field in set(one.data_vars) - {"time"}:
            np.testing.assert_array_equal(one[field], other[field], err_msg=field)
        np.testing.assert_array_equal(here.density_counts().counts, parked.density_counts().counts)


def test_training_on_a_stream_of_its_own_is_measured_the_same(tmp_path):
    def run(path, stream):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            state = everything(*simple(model, sgd(model), Recorded(path)))
        stream.synchronize()
        return state

    one = run(tmp_path / "one.h5", torch.cuda.current_stream())
    other = run(tmp_path / "other.h5", torch.cuda.Stream())
    assert differences(one, other) == []
    with lsmooth.Trace(tmp_path / "one.h5") as first, lsmooth.Trace(tmp_path / "other.h5") as second:
        for name in ("loss_along", "grad_diff", "coordinate/grad_along"):
            np.testing.assert_array_equal(first.read(name), second.read(name))


def graphed(watch):
    """A model whose forward and backward are CUDA graphs: its gradients come in memory that the next run overwrites."""
    model = mlp(nn.Linear(8, 8))
    torch.cuda.make_graphed_callables(model, (batches(1)[0][0],))
    return simple(model, sgd(model), watch)


def test_gradients_in_the_memory_of_graphs(tmp_path):
    results = []
    for watch in (Bare(), Recorded(tmp_path / "run.h5")):
        seed_all()
        results.append(everything(*graphed(watch)))
    assert differences(*results) == []
    seed_all()
    model = mlp(nn.Linear(8, 8))
    simple(model, sgd(model), Recorded(tmp_path / "plain.h5"))
    with lsmooth.Trace(tmp_path / "run.h5") as trace, lsmooth.Trace(tmp_path / "plain.h5") as plain:
        assert trace.status_counts() == {"measured": 6}
        for name in ("loss", "loss_along", "grad_norm", "grad_diff"):
            np.testing.assert_allclose(trace.read(name), plain.read(name), rtol=1e-4, atol=1e-7, err_msg=name)


def test_graphs_that_a_loop_comes_to_use_are_noticed(tmp_path):
    seed_all()
    model = mlp(nn.Linear(8, 8))
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for i, (x, y) in enumerate(batches(6)):
            if i == 2:
                torch.cuda.make_graphed_callables(model, (x.clone(),))
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
    status = lsmooth.Trace(tmp_path / "run.h5").status.tolist()
    assert status == [Status.MEASURED] * 2 + [Status.OTHER_GRADIENT] + [Status.MEASURED] * 3


def test_losses_of_graphs_outlast_the_step(tmp_path):
    seed_all()
    model = mlp()
    fast = torch.compile(lambda x, y: classify(model, x, y), mode="reduce-overhead")
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(5):
            optimizer.zero_grad()
            before = classify(model, x, y).item()
            loss = recorder.backward(lambda x=x, y=y: fast(x, y))
            optimizer.step()
            assert loss.item() == pytest.approx(before, rel=1e-4)


CAPTURED = (
    *("plain", "dropout", "numpy_and_random_draws", "batch_norm", "spectral_norm", "weight_norm", "buffer_rebound"),
    *("rnn_hidden", "accumulation", "clip_norm", "gradient_penalty", "autocast_outside", "double_precision", "tied"),
    *("channels_last", "foreign_leaf", "frozen_and_unreached", "other_optimizer_steps_first", "compiled"),
    "frozen_and_unfrozen_on_the_way",
)


@pytest.mark.parametrize("name", CAPTURED)
def test_evaluations_played_back_are_evaluations(name, tmp_path):
    results = []
    for watch in (Bare(), Recorded(tmp_path / "graphs.h5", cuda_graphs=True), Recorded(tmp_path / "eager.h5")):
        seed_all()
        results.append(everything(*LOOPS[name](watch)))
        torch._dynamo.reset()
    assert differences(results[0], results[1]) == []
    with lsmooth.Trace(tmp_path / "graphs.h5") as played, lsmooth.Trace(tmp_path / "eager.h5") as eager:
        assert played.status_counts() == {"measured": len(eager)}
        for field in ("loss", "loss_along", "loss_next", "slope", "grad_norm", "grad_diff", "coordinate/grad_along"):
            np.testing.assert_array_equal(played.read(field), eager.read(field), err_msg=field)


def test_probes_are_played_back(tmp_path):
    for path, cuda_graphs in ((tmp_path / "graphs.h5", True), (tmp_path / "eager.h5", False)):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        probe = fixed_losses(model, 3)
        simple(model, sgd(model), Recorded(path, probe=probe, cuda_graphs=cuda_graphs))
    with lsmooth.Trace(tmp_path / "graphs.h5") as played, lsmooth.Trace(tmp_path / "eager.h5") as eager:
        for field in ("loss", "loss_along", "grad_norm", "grad_diff", "grad_noise"):
            np.testing.assert_array_equal(played.read(field), eager.read(field), err_msg=field)


WAITING = """
import sys
import torch
from loops import batches, classify, differences, everything, mlp, seed_all, sgd
from torch import nn
import lsmooth

states, refused = [], 0
with torch.device("cuda"):
    for watched in (False, True):
        seed_all()
        model = mlp(nn.Dropout(0.2), nn.BatchNorm1d(8))
        optimizer = sgd(model)
        recorder = lsmooth.Recorder(model, optimizer, "run.h5", cuda_graphs=True) if watched else None
        for x, y in batches(4):

            def closure():
                loss = classify(model, x, y)
                return loss * (1.0 if loss.item() > 0 else 2.0)

            optimizer.zero_grad()
            recorder.backward(closure) if watched else closure().backward()
            try:
                optimizer.step()
            except lsmooth.LsmoothError as error:
                assert "cannot be captured as a CUDA graph" in str(error), error
                refused += 1
        states.append(everything(model, optimizer))
print(refused, differences(*states))
"""


def test_a_closure_that_waits_cannot_be_captured_and_leaves_all_as_it_was(tmp_path):
    # In a process of its own: a capture that fails may leave more behind than is known.
    done = subprocess.run(
        [sys.executable, "-c", WAITING],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "4 []\n", done.stderr


def test_graphs_do_not_pile_up(tmp_path):
    seed_all()
    model = mlp(nn.Dropout(0.2))
    optimizer = sgd(model, 1e-3)
    reserved = []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", cuda_graphs=True) as recorder:
        for x, y in batches(60):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
            reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] == reserved[5]
