"""x_t and x_{t+1} in the host's memory: what stays on the device is counted, on one whose values cannot be read."""

import weakref

import numpy as np
import pytest
import torch
from loops import seed_all, sgd
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lsmooth
from lsmooth.measure.handover import Handover
from lsmooth.replay.segment import Segment


class Held(TorchDispatchMode):
    """Counts the bytes that tensors of the meta device hold, each memory once, and the most of them at any moment."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                self._count(tensor.untyped_storage())
        return out

    def _count(self, memory):
        if memory not in self._known:
            self._known.add(memory)
            size = memory.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(memory, self._gone, size)

    def _gone(self, size):
        self.now -= size


def test_it_counts():
    with Held() as held:
        a = torch.empty(1000, device="meta")
        b = a.view(10, 100) + 1
        assert (held.now, held.peak) == (8000, 8000)
        del b
        kept = nn.Parameter(a)
        kept.grad = torch.ones_like(kept)
        assert held.now == 8000
        kept.grad = None
        del a, kept
        assert (held.now, held.peak) == (0, 8000)


@pytest.fixture
def unread_device(monkeypatch):
    """Let models of the meta device be measured, and what they park count as copied, which cannot be copied."""

    def parameters(model, optimizer):
        return [name for name, _ in model.named_parameters()], list(model.parameters())

    copy = Segment._copy
    arrived = []

    def let_in(self, into, values):
        if {tensor.device.type for tensor in values} == {"meta"} and {tensor.device.type for tensor in into} == {"cpu"}:
            arrived.append(sum(tensor.nbytes for tensor in values))
        else:
            copy(self, into, values)

    monkeypatch.setattr("lsmooth.loop.subject.measured_parameters", parameters)
    monkeypatch.setattr(Handover, "flush", lambda self: None)
    monkeypatch.setattr(Segment, "_copy", let_in)
    # As large as it says, and never touched.
    monkeypatch.setattr(
        "lsmooth.replay.segment.parked_room", lambda p: torch.empty_strided(p.shape, p.stride(), dtype=p.dtype)
    )
    return arrived


def extra_copies(tmp_path, layers=40, width=2000, dtype=torch.float32, clips=False, **arguments):
    """Return the peak of two measured steps over that of two without recorder, in copies of the parameters."""
    peaks = []
    for watched in (False, True):
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).to("meta", dtype)
        optimizer = sgd(model, momentum=0.9)
        x = torch.empty(2, width, dtype=dtype, device="meta")
        recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", mode="w", **arguments) if watched else None

        def closure(model=model, x=x):
            return model(x).square().mean()

        with Held() as held:
            for _ in range(2):
                optimizer.zero_grad()
                recorder.backward(closure) if recorder else closure().backward()
                if clips:
                    torch._foreach_mul_([p.grad for p in model.parameters()], 0.5)
                optimizer.step()
            peaks.append(held.peak)
        if recorder:
            assert recorder._recording.handover._block.steps == [0, 1]
    return (peaks[1] - peaks[0]) / sum(p.nbytes for p in model.parameters())


def test_two_copies_fewer_are_held(tmp_path, unread_device):
    assert 2.9 < extra_copies(tmp_path) < 3.1
    assert not unread_device
    assert 0.9 < extra_copies(tmp_path, offload=True) <= 1.2
    # x_t and x_{t+1} of both steps.
    assert len(unread_device) == 4


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ({"clips": True}, 1.2),
        ({"norms": ("linf", "spectral")}, 1.3),
        # Temporary results are in float32, and copies in half of that.
        ({"dtype": torch.bfloat16}, 1.5),
        ({"densities": True}, 3.2),
        ({"blocks": 4}, 1.25),
        ({"gammas": (0.5, 1.0), "endpoint": False, "coordinates": 0}, 1.2),
    ],
    ids=str,
)
def test_whatever_is_measured(arguments, limit, tmp_path, unread_device):
    assert 0.9 < extra_copies(tmp_path, offload=True, **arguments) <= limit


def test_a_small_model_stays_where_it_is(tmp_path, unread_device):
    assert extra_copies(tmp_path, layers=2, width=100, offload=True) > 3
    assert not unread_device


def test_on_the_cpu_it_changes_nothing(tmp_path):
    for name, offload in (("without", False), ("with", True)):
        seed_all()
        model = nn.Sequential(*(nn.Linear(600, 600) for _ in range(3)))
        optimizer = sgd(model, momentum=0.9)
        x = torch.randn(4, 600)
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{name}.h5", offload=offload) as recorder:
            for _ in range(3):
                optimizer.zero_grad()
                recorder.backward(lambda: model(x).square().mean())  # noqa: B023
                optimizer.step()
    with lsmooth.Trace(tmp_path / "without.h5") as one, lsmooth.Trace(tmp_path / "with.h5") as other:
        assert len(one) == 3
        for field in (
            "loss_along",
            "grad_diff",
            "step_norm",
            "curvature/change",
            "coordinate/grad_along",
            "weight_norm",
        ):
            np.testing.assert_array_equal(one.read(field), other.read(field))
