"""Prints, as JSON, what measured steps hold on a device whose values cannot be read, in copies of the parameters.

It changes classes of lsmooth, and is a process of its own.
"""

import json
import tempfile
import weakref
from pathlib import Path

import torch
from loops import not_put_back, sgd
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lsmooth
from lsmooth.loop.settings import DEFAULT_GAMMAS
from lsmooth.measure.handover import Handover
from lsmooth.replay.segment import Segment

CASES = {
    "without": {},
    "offload": {"offload": True, "gammas": DEFAULT_GAMMAS},
    "clips": {"offload": True, "clips": True},
    "norms": {"offload": True, "norms": ("linf", "spectral")},
    "bfloat16": {"offload": True, "dtype": torch.bfloat16},
    "densities": {"offload": True, "densities": True},
    "blocks": {"offload": True, "blocks": 4},
    "few points": {"offload": True, "gammas": (0.5, 1.0), "endpoint": False, "coordinates": 0},
    "small": {"offload": True, "layers": 2, "width": 100},
}
# Bytes of each copy to the host, which is counted and not made.
parked = []


class Held(TorchDispatchMode):
    """Counts the bytes that tensors of the meta device hold, each memory once, and the most of them at any moment."""

    def __init__(self):
        super().__init__()
        # Replays put back what a mode counts.
        self._counts = not_put_back(now=0, peak=0)
        self._known = weakref.WeakSet()

    @property
    def now(self):
        return self._counts.now

    @property
    def peak(self):
        return self._counts.peak

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
            self._counts.now += size
            self._counts.peak = max(self._counts.peak, self._counts.now)
            weakref.finalize(memory, self._gone, size)

    def _gone(self, size):
        self._counts.now -= size


def let_device_in():
    """Let models of the meta device be measured, from which nothing can be copied."""
    copy = Segment._copy

    def let_in(self, into, values):
        if {t.device.type for t in values} == {"meta"} and {t.device.type for t in into} == {"cpu"}:
            parked.append(sum(t.nbytes for t in values))
        else:
            copy(self, into, values)

    import lsmooth.loop.subject
    import lsmooth.replay.segment

    lsmooth.loop.subject.measured_parameters = lambda model, _: (
        [name for name, _ in model.named_parameters()],
        list(model.parameters()),
    )
    # As large as it says, and never touched.
    lsmooth.replay.segment.parked_room = lambda p: torch.empty_strided(p.shape, p.stride(), dtype=p.dtype)
    Handover.flush = lambda self: None
    Segment._copy = let_in


def extra_copies(folder, layers=40, width=2000, dtype=torch.float32, clips=False, gammas=(0.5,), **arguments):
    """Return the peak of two measured steps over that of two without recorder, in copies of the parameters."""
    peaks = []
    for watched in (False, True):
        model = nn.Sequential(*(nn.Linear(width, width, device="meta", dtype=dtype) for _ in range(layers)))
        optimizer = sgd(model, momentum=0.9)
        x = torch.empty(2, width, dtype=dtype, device="meta")
        recorder = None
        if watched:
            recorder = lsmooth.Recorder(model, optimizer, folder / "run.h5", gammas=gammas, mode="w", **arguments)

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


def main():
    let_device_in()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in CASES.items():
            parked.clear()
            found[name] = extra_copies(Path(folder), **arguments), len(parked)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
