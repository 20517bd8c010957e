"""Generalized SignSGD compiled into one pass: the same steps, compiled once, whatever changes from step to step."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

import lsmooth.optim.generalized_signsgd.compiled as backend
from lsmooth.optim import GeneralizedSignSGD

pytestmark = [
    # The first use in a process waits for a compiler.
    pytest.mark.timeout(600),
    # torch.compile imports what PyTorch itself has deprecated.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]

SETTINGS = {
    "default": {"lr": 1e-2, "betas": (0.9, 0.999)},
    "algorithm 1": {"lr": 1e-2, "betas": (0.9, 0.5), "eps": 0.0},
    "L2": {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "maximize": True},
    "everything": {
        "lr": torch.tensor(1e-2, dtype=torch.float64),
        "betas": (0.8, 0.95),
        "eps": 1e-3,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "bias_correction": True,
        "maximize": True,
    },
    "signum": {"lr": 1e-2, "betas": (0.9, 0.0), "eps": 0.0},
}
# Those worth compiling, of which a call takes several of one size, and what stays with the other backends: small ones,
# and one with gaps.
LARGE = backend._WORTH_COMPILING["cpu"]
MANY = backend._A_CALL + 1
SHAPES = [*MANY * [(LARGE,)], (2, LARGE // 2 + 1), (3, 4), ()]


def weights(dtype):
    torch.manual_seed(0)
    values = [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in SHAPES]
    values.append(torch.randn(2, LARGE, dtype=torch.float64).to(dtype).T)
    return [torch.nn.Parameter(value) for value in values]


def run(steps, dtype=torch.float64, change=lambda optimizer, step: None, **arguments):
    params = weights(dtype)
    optimizer = GeneralizedSignSGD(params, **arguments)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
            p.grad = 10.0 ** (step % 3 - 1) * (p.detach() + noise)
        change(optimizer, step)
        optimizer.step()
    return params, optimizer


@pytest.fixture
def compiled_calls(monkeypatch):
    """Sizes of the tensors that went through compiled code, call by call."""
    calls = []
    update = backend._one_pass_compiled()

    def counted(params, *others):
        calls.append([p.numel() for p in params])
        update(params, *others)

    monkeypatch.setattr(backend, "_one_pass_compiled", lambda: counted)
    return calls


@pytest.mark.parametrize("setting", SETTINGS)
def test_steps_are_those_of_the_plain_form(setting, compiled_calls):
    expected, plain = run(5, **SETTINGS[setting], foreach=False, fused=False)
    assert not compiled_calls
    got, optimizer = run(5, **SETTINGS[setting], compile=True)
    # With beta2 = 0 there is no second moment, and nothing to save a pass over.
    calls = [(MANY - 1) * [LARGE], [LARGE], [2 * (LARGE // 2 + 1)]]
    assert compiled_calls == ([] if SETTINGS[setting]["betas"][1] == 0 else 5 * calls)
    for p, q in zip(got, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        state, other = optimizer.state[p], plain.state[q]
        assert state.keys() == other.keys()
        for name in state.keys() - {"step"}:
            torch.testing.assert_close(state[name], other[name], rtol=1e-12, atol=1e-12)


# The other backends round v to bfloat16 several times a step, which gradients that follow the weights would blow up.
@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [(torch.float32, 3, 1e-5), (torch.bfloat16, 1, 1e-2)])
def test_steps_in_other_precisions(dtype, steps, tolerance, compiled_calls):
    arguments = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1, "decoupled_weight_decay": True}
    expected, _ = run(steps, dtype, **arguments, foreach=False, fused=False)
    got, _ = run(steps, dtype, **arguments, compile=True)
    assert len(compiled_calls) == 3 * steps
    for p, q in zip(got[: MANY + 1], expected[: MANY + 1], strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def test_zero_over_zero_is_zero():
    p = torch.nn.Parameter(torch.ones(LARGE))
    optimizer = GeneralizedSignSGD([p], lr=0.1, betas=(0.9, 0.999), eps=0.0, compile=True)
    p.grad = torch.zeros(LARGE)
    p.grad[0] = 1e-15
    optimizer.step()
    # √v = √(1 - beta2) |m| after one step.
    assert p[0].item() == pytest.approx(1 - 0.1 / 0.001**0.5, rel=1e-5)
    assert (p[1:] == 1).all()


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="PyTorch 2.6 can refuse to compile anew")
def test_nothing_is_compiled_anew_for_other_numbers_and_sizes():
    def change(optimizer, step):
        group = optimizer.param_groups[0]
        group["lr"] = [0.1, 0.01, torch.tensor(0.003, dtype=torch.float64)][step % 3]
        group["weight_decay"] = 0.1 * step
        group["eps"] = [1e-8, 0.0][step % 2]

    arguments = {"betas": (0.9, 0.99), "bias_correction": True}
    run(1, **arguments, compile=True)
    with torch.compiler.set_stance("fail_on_recompile"):
        got, _ = run(6, change=change, **arguments, compile=True)
    expected, _ = run(6, change=change, **arguments, foreach=False, fused=False)
    for p, q in zip(got, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_checkpoint_of_another_backend_is_taken_over():
    params, optimizer = run(2, lr=0.01, foreach=False, fused=False)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    compiled = GeneralizedSignSGD(others, lr=0.01, compile=True)
    compiled.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    # As with torch's own optimizers, the switches are part of what a checkpoint holds.
    assert compiled.param_groups[0]["compile"] is False
    compiled.param_groups[0].update(compile=True, foreach=None, fused=None)
    for p, q in zip(params, others, strict=True):
        p.grad = torch.full_like(p, 0.5)
        q.grad = torch.full_like(q, 0.5)
    optimizer.step()
    compiled.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_without_a_compiler_nothing_is_changed_and_a_sentence_says_so(tmp_path):
    script = f"""
import torch
from lsmooth.errors import OptimizerError
from lsmooth.optim import GeneralizedSignSGD
large, small = (torch.nn.Parameter(torch.ones(size)) for size in ({LARGE}, 3))
optimizer = GeneralizedSignSGD([small, large], compile=True)
for p in (large, small):
    p.grad = torch.ones_like(p)
try:
    optimizer.step()
except OptimizerError as error:
    print(error, large.sum().item() == {LARGE}, small.sum().item() == 3)
"""
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("`compile=True` needs a C++ compiler")
    assert "(InvalidCxxCompiler: No working C++ compiler found" in output
    assert output.endswith("leave compile unset. True True\n")
    assert output.count("\n") == 1


def test_parameters_on_a_gpu_are_compiled_for_with_their_factors_beside_them(monkeypatch):
    """Without a GPU: tensors that have a device but no memory show what would be compiled, and for what."""
    calls = []
    monkeypatch.setattr(backend, "_one_pass_compiled", lambda: lambda *columns: calls.append(columns))
    # Such tensors are of a class of their own.
    monkeypatch.setattr(backend, "is_plain", lambda tensors: True)
    large = backend._WORTH_COMPILING["cuda"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = [torch.nn.Parameter(torch.empty(size, device="cuda")) for size in (large, large - 1)]
        optimizer = GeneralizedSignSGD(params, lr=torch.tensor(0.1), weight_decay=0.1, compile=True)
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
    (((p,), (g,), (m,), (v,), factors),) = calls
    assert p.numel() == large
    assert {t.device.type for t in (p, g, m, v, factors)} == {"cuda"}
    assert (factors.dtype, factors.shape) == (torch.float32, (9,))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01), "device"], ids=["number", "host", "device"])
def test_compiled_cuda_steps_are_plain_cuda_steps_and_wait_for_nothing(lr):
    lr = torch.tensor(0.01, device="cuda") if lr == "device" else lr
    shapes = [*MANY * [(backend._WORTH_COMPILING["cuda"],)], (3, 4)]
    found = []
    for switches in ({"compile": True}, {"foreach": False, "fused": False}):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes]
        optimizer = GeneralizedSignSGD(params, lr=lr, weight_decay=0.1, bias_correction=True, **switches)
        for step in range(4):
            for p in params:
                p.grad = p.detach() + torch.randn_like(p)
            torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
            try:
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append([p.detach() for p in params])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
