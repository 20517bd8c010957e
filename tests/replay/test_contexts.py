"""Contexts in force around a forward pass are in force in its replays, and no longer than that."""

import contextlib
import contextvars

import numpy as np
import pytest
import torch
from loops import batches, classify, mlp, not_put_back, sgd
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import lsmooth
from lsmooth.replay import replaying
from lsmooth.replay.contexts import ContextState


class Doubles(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        return 2 * out if function is torch.tanh else out


class Halves(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        return out / 2 if function is torch.ops.aten.tanh.default else out


VARIABLE = contextvars.ContextVar("variable", default=1.0)


@contextlib.contextmanager
def variable():
    token = VARIABLE.set(3.0)
    yield
    VARIABLE.reset(token)


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def seen_now():
    """Return what the present contexts make of a few computations."""
    x = torch.full((2,), 0.5)
    top = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return (
        torch.tanh(x).sum().item(),
        torch.zeros(1).dtype,
        torch.zeros(1).device.type,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.mkldnn.enabled,
        torch.is_autocast_enabled("cpu"),
        np.geterr()["over"],
        VARIABLE.get(),
        top is None,
    )


CONTEXTS = {
    "function mode": Doubles,
    "dispatch mode": Halves,
    "default device": lambda: torch.device("meta"),
    "default dtype": default_dtype,
    "attention": lambda: nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
    "saved tensors": lambda: torch.autograd.graph.save_on_cpu(),
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "one dnn": lambda: torch.backends.mkldnn.flags(enabled=False),
    "variable": variable,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_is_in_force_again_and_then_no_more(name):
    outside = ContextState.capture("cpu")
    if name == "default device":
        with CONTEXTS[name]():
            inside = ContextState.capture("cpu")
        with inside.restored():
            assert torch.zeros(1).device.type == "meta"
        assert torch.zeros(1).device.type == "cpu"
        return
    before = seen_now()
    with CONTEXTS[name]():
        inside = ContextState.capture("cpu")
        within = inside.call(seen_now)
        with outside.restored():
            assert outside.call(seen_now) == before
        assert seen_now() == within
    assert within != before
    with inside.restored():
        assert inside.call(seen_now) == within
    assert seen_now() == before
    with pytest.raises(KeyError), inside.restored():
        raise KeyError
    assert seen_now() == before


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("way", ["backward", "watch"])
@pytest.mark.parametrize("name", ["function mode", "dispatch mode", "variable"])
def test_a_replay_computes_what_the_context_made_of_the_loss(name, way, tmp_path):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = sgd(model)
    losses = []

    def compute(x, y):
        return classify(lambda x: model[2](torch.tanh(model[0](x))), x, y) * VARIABLE.get()

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", gammas=(1e-3,)) as recorder:
        watched = recorder.watch(compute) if way == "watch" else None
        for x, y in batches(2):
            optimizer.zero_grad()
            with CONTEXTS[name]():
                if watched is None:
                    losses.append(recorder.backward(lambda x=x, y=y: compute(x, y)).item())
                else:
                    loss = watched(x, y)
                    losses.append(loss.item())
                    loss.backward()
            optimizer.step()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status_counts() == {"measured": 2}
    np.testing.assert_allclose(trace.read("loss"), losses, rtol=1e-6)
    # Just beside x_t, the loss is nearly the same.
    np.testing.assert_allclose(trace.read("loss_along")[:, 0], losses, rtol=1e-3)


def test_what_a_loss_sets_for_good_is_set_back_after_a_replay(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    (x, y), *_ = batches(1)

    def closure():
        torch.set_float32_matmul_precision("high")
        VARIABLE.set(5.0)
        return classify(model, x, y)

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        recorder.backward(closure)
        torch.set_float32_matmul_precision("highest")
        token = VARIABLE.set(2.0)
        optimizer.step()
    assert torch.get_float32_matmul_precision() == "highest"
    assert VARIABLE.get() == 2.0
    VARIABLE.reset(token)


@pytest.mark.parametrize("name", ["saved tensors", "operators"])
def test_what_a_context_counts_is_counted_once(name, tmp_path):
    class Operators(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.products = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.products += function is torch.ops.aten.addmm.default
            return function(*args, **(kwargs or {}))

    def run(path):
        model = mlp()
        optimizer = sgd(model)
        mode, packed = Operators(), []
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None

        def pack(tensor):
            packed.append(tensor.numel())
            return tensor

        with mode if name == "operators" else torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            for x, y in batches(3):
                optimizer.zero_grad()
                recorder.backward(lambda: classify(model, x, y)) if recorder else classify(model, x, y).backward()  # noqa: B023
                optimizer.step()
        if recorder:
            recorder.close()
        return mode.products, packed

    alone = run(None)
    assert alone == run(tmp_path / "run.h5")
    assert alone[0] == 6 or len(alone[1]) > 6


@pytest.mark.parametrize("through", ["backward", "step"])
def test_cached_parametrizations_are_those_of_each_point(through, tmp_path):
    """A weight's norm is computed once in the context, and anew at each point of the segment."""
    counts = not_put_back(computed=0)

    class Doubled(nn.Module):
        def forward(self, weight):
            counts.computed += not replaying()
            return 2 * weight

    def run(path, cached):
        torch.manual_seed(0)
        layer = parametrize.register_parametrization(nn.Linear(3, 1), "weight", Doubled())
        optimizer = sgd(layer)
        counts.computed = 0
        with lsmooth.Recorder(layer, optimizer, path) as recorder:
            for x, _ in batches(3):
                optimizer.zero_grad()
                with contextlib.ExitStack() as stack:
                    if cached:
                        stack.enter_context(parametrize.cached())
                    recorder.backward(lambda x=x: (layer(x[:, :3]) + layer(x[:, :3])).sigmoid().mean())
                    if through == "backward":
                        stack.close()
                    optimizer.step()
        with lsmooth.Trace(path) as trace:
            assert trace.status_counts() == {"measured": 3}
            return counts.computed, trace.smoothness().smoothness

    (once, smoothness), (twice, other) = run(tmp_path / "a.h5", True), run(tmp_path / "b.h5", False)
    assert (once, twice) == (3, 6)
    np.testing.assert_allclose(smoothness, other, rtol=1e-5)


class CountsFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


class CountsOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("make", "where"), [
    (CountsFunctions, "loss"), (CountsOperators, "loss"),
    (lambda: FlopCounterMode(display=False), "loss"), (lambda: FlopCounterMode(display=False), "step"),
])  # fmt: skip
def test_operations_are_counted_as_without_the_recorder(make, where, tmp_path):
    def run(path):
        model = mlp()
        optimizer, counter, counts = sgd(model), make(), []
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        for x, y in batches(3):
            optimizer.zero_grad()

            def loss(x=x, y=y):
                with counter if where == "loss" else contextlib.nullcontext():
                    return classify(model, x, y)

            with counter if where == "step" else contextlib.nullcontext():
                recorder.backward(loss) if recorder else loss().backward()
                optimizer.step()
            counts.append(counter.get_total_flops() if isinstance(counter, FlopCounterMode) else counter.count)
        if recorder:
            recorder.close()
        return counts

    alone = run(None)
    assert alone[0] > 0
    assert run(tmp_path / "run.h5") == alone
