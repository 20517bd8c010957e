"""How much a measured step has the host dispatch on a device that runs behind it, counted on one that runs nothing."""

import pytest
import torch
from loops import sgd
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lsmooth
from lsmooth.measure.handover import Handover


class Dispatched(TorchDispatchMode):
    """Lists the operations that are dispatched in a block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def meta_device_let_in(monkeypatch):
    def parameters(model, optimizer):
        return [name for name, _ in model.named_parameters()], list(model.parameters())

    monkeypatch.setattr("lsmooth.loop.subject.measured_parameters", parameters)
    # What leaves the device does so in blocks, and is read on another thread.
    monkeypatch.setattr(Handover, "flush", lambda self: None)


def own_operations(path, layers, points, width=4):
    """Return what a measured step dispatches but for its evaluations and the optimizer's step.

    Modes are contexts of the loop: an evaluation runs under those of its backward pass, where there were none.
    """
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)]).to("meta")
    optimizer = sgd(model)
    x = torch.zeros(4, width, device="meta")
    gammas = [(i + 1) / (points + 1) for i in range(points)]
    with lsmooth.Recorder(model, optimizer, path, gammas=gammas, endpoint=False) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            recorder.backward(lambda: model(x).square().mean())
            with Dispatched() as found:
                optimizer.step()
    with Dispatched() as bare:
        optimizer.step()
    return len(found.names) - len(bare.names)


@pytest.mark.parametrize("layers", [4, 75])
def test_a_point_takes_15_operations_whatever_the_number_of_tensors(layers, tmp_path):
    # The parameters are moved (2), differences formed and their norms taken (2), products with the step formed and
    # summed up (4), brought together (2); the loss is copied (2), and followed coordinates are read (3).
    few, many = (own_operations(tmp_path / f"{points}.h5", layers, points) for points in (2, 3))
    assert many - few <= 15
