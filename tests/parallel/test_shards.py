"""Which elements of a sharded tensor a process holds: those that `torch.chunk` gives it."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from lsmooth.loop.subject import Subject
from lsmooth.parallel import shards
from lsmooth.parallel.shards import held, is_sharded, local, local_ranges


@dataclass
class Mesh:
    """A device mesh as this process sees it."""

    sizes: tuple[int, ...]
    place: tuple[int, ...]

    def size(self, dim):
        return self.sizes[dim]

    def get_local_rank(self, dim):
        return self.place[dim]


@dataclass
class Sharded:
    """What is asked of a sharded parameter."""

    shape: tuple[int, ...]
    device_mesh: Mesh
    placements: list = field(default_factory=lambda: [Shard(0)])


def chunk(whole, parameter):
    """Return what this process holds, by `torch.chunk` along each dimension of the mesh."""
    for dim, placement in enumerate(parameter.placements):
        if placement.is_shard():
            parts = torch.chunk(whole, parameter.device_mesh.size(dim), placement.dim)
            rank = parameter.device_mesh.get_local_rank(dim)
            empty = whole.narrow(placement.dim, 0, 0)
            whole = parts[rank] if rank < len(parts) else empty
    return whole


LAYOUTS = [
    ((7,), (2,), [Shard(0)]),
    ((4, 6), (4,), [Shard(0)]),
    ((5, 3), (3,), [Shard(1)]),
    ((5, 3), (4,), [Shard(0)]),
    ((2, 3), (4,), [Shard(0)]),
    ((6, 5), (2, 3), [Shard(0), Shard(1)]),
    ((6, 5), (2, 2), [Replicate(), Shard(0)]),
    ((6, 5), (2, 3), [Shard(0), Shard(0)]),
]


@pytest.mark.parametrize(("shape", "sizes", "placements"), LAYOUTS)
def test_each_process_holds_what_torch_gives_it(shape, sizes, placements, monkeypatch):
    monkeypatch.setattr(shards, "is_sharded", lambda tensor: True)
    count = int(np.prod(shape))
    whole = torch.arange(count).reshape(shape)
    asked = np.random.default_rng(0).permutation(count)
    found = []
    for place in np.ndindex(*sizes):
        parameter = Sharded(shape, Mesh(sizes, place), placements)
        mine = chunk(whole, parameter)
        assert [length for _, length in local_ranges(parameter)] == list(mine.shape)
        here, indices = held(parameter, asked)
        # The element at each local position is the one that was asked for.
        assert mine.reshape(-1)[torch.from_numpy(indices)].tolist() == asked[here].tolist()
        assert sorted(asked[here]) == sorted(mine.reshape(-1).tolist())
        found.append(here)
    replicas = sizes[0] if isinstance(placements[0], Replicate) else 1
    assert sorted(np.concatenate(found)) == sorted(np.repeat(np.arange(count), replicas))


def test_an_ordinary_tensor_is_held_whole():
    tensor = torch.nn.Parameter(torch.zeros(3, 2))
    assert not is_sharded(tensor)
    assert local(tensor) is tensor
    here, indices = held(tensor, np.array([5, 0]))
    assert (here.tolist(), indices.tolist()) == ([0, 1], [5, 0])
    assert issubclass(DTensor, torch.Tensor)


@pytest.mark.filterwarnings("ignore")
def test_what_is_gathered_for_a_while_is_no_companion(one_process_group):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("fully_shard is public from PyTorch 2.6 on")
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    fsdp.fully_shard(model[1])
    # Its parameters stay gathered between forward and backward.
    fsdp.fully_shard(model)
    others = list(model[0].parameters())
    whole = Subject.of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    half = Subject.of(model, torch.optim.SGD(model[1].parameters(), lr=0.1))

    loss = model(torch.ones(5, 3)).sum()
    assert not any(is_sharded(parameter) for parameter in model[0].parameters())
    assert whole.companions() == []
    assert [id(parameter) for parameter in half.companions()] == [id(parameter) for parameter in others]

    loss.backward()
    assert whole.companions() == []
    assert [id(parameter) for parameter in half.companions()] == [id(parameter) for parameter in others]
