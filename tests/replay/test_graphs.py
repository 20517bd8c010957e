"""Whose memory gradients lie in; capturing and playing back is tested on a GPU, in `tests/test_cuda.py`."""

import pytest
import torch

from lsmooth.replay.graphs import owned_by_graphs


def test_no_graph_owns_memory_of_the_cpu():
    assert not owned_by_graphs([])
    assert not owned_by_graphs([torch.ones(3), torch.ones(2)])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_graph_allocated_is_its_own():
    source = torch.ones(64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside = source * 2
    assert owned_by_graphs([source, inside])
    assert not owned_by_graphs([source])
