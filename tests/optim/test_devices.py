"""No step waits for the device, and each device takes the same steps."""

import pytest
import torch
from optimizers import EVERY, SETTINGS, set_gradients, weights
from torch.utils._python_dispatch import TorchDispatchMode


class Syncs(TorchDispatchMode):
    """Counts what would make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@EVERY
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01, dtype=torch.float64)], ids=["number", "tensor"])
def test_a_step_never_waits_for_the_device(setting, lr):
    for dtype in (torch.float64, torch.float32):
        params = weights(dtype)
        optimizer = SETTINGS[setting](params, lr=lr, weight_decay=0.1)
        for step in range(2):
            set_gradients(params, step)
            with Syncs() as syncs:
                optimizer.step()
            assert syncs.found == []


def test_the_counter_of_syncs_counts():
    with Syncs() as syncs:
        torch.ones(()).item()
    assert len(syncs.found) == 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY
def test_cuda_steps_are_cpu_steps(setting):
    host = weights(torch.float32)
    device = [torch.nn.Parameter(p.detach().cuda()) for p in host]
    # CUDA's fused kernel computes with beta2 as float32 has it.
    rounded = {"betas": (0.9, torch.tensor(0.999).item())} if "signsgd" in setting else {}
    a, b = SETTINGS[setting](host, **rounded), SETTINGS[setting](device, **rounded)
    for step in range(5):
        set_gradients(host, step)
        for h, d in zip(host, device, strict=True):
            d.grad = h.grad.cuda()
        a.step()
        with torch.cuda.device(0):
            torch.cuda.set_sync_debug_mode("error")
            try:
                b.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    for h, d in zip(host, device, strict=True):
        torch.testing.assert_close(d.cpu(), h, rtol=1e-5, atol=1e-6)
