"""What an evaluation reads besides parameters is captured, restored, and put back."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from lsmooth.replay.state import ModuleState, RandomState, Surroundings, put_back

pytestmark = pytest.mark.usefixtures("device")


def draws(*generators):
    """Return a number of each generator that there is."""
    found = [torch.rand(()).item(), np.random.rand(), random.random()]
    for generator in generators:
        if isinstance(generator, torch.Generator):
            found.append(torch.rand((), generator=generator, device=generator.device).item())
        else:
            found.append(generator.random())
    return found


def test_random_numbers_are_drawn_again_from_a_restored_state(device):
    own = [torch.Generator(device), np.random.default_rng(0), random.Random(0)]
    state = RandomState.capture(*own)
    first = draws(*own)
    assert draws(*own) != first
    state.restore()
    assert draws(*own) == first


def test_a_seeded_state_is_that_after_seeding_and_seeds_nothing():
    before = RandomState.capture()
    state = RandomState.seeded(7)
    after = draws()
    before.restore()
    assert draws() == after
    state.restore()
    found = draws()
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    assert draws() == found


class Counting(nn.Module):
    """Counts its calls in a buffer, and has another that it replaces."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        self.calls += 1
        self.last = x.mean(0).detach()
        return self.norm(x)


def contents(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_buffers_flags_and_frozen_parameters_are_restored():
    model = Counting()
    last = model.last
    before = contents(model)
    state = ModuleState.capture(model)
    model(torch.randn(4, 2))
    model.eval()
    model.norm.weight.requires_grad_(False)
    assert any(not torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    state.restore()
    for name, buffer in model.named_buffers():
        assert torch.equal(before[name], buffer), name
    # The same tensor, which others may hold.
    assert model.last is last
    assert model.training
    assert model.norm.training
    assert model.norm.weight.requires_grad


def test_large_buffers_that_were_not_written_to_are_not_kept():
    model = nn.Module()
    model.register_buffer("read", torch.zeros(1 << 20))
    model.register_buffer("written", torch.zeros(1 << 20))
    state = ModuleState.capture(model)
    model.written.add_(1)
    kept = state.without_unchanged().contents
    assert [copy is None for _, copy, _ in kept] == [True, False]


def test_an_evaluation_finds_what_the_first_one_found_and_leaves_what_it_leaves(device):
    model = Counting()
    history = []

    def closure():
        history.append(float(model.calls))
        return model(torch.randn(4, 2)).sum()

    surroundings = Surroundings.capture(closure, device_type=device)
    first = closure()
    surroundings = surroundings.without_unchanged()
    closure()
    now, after = contents(model), list(history)
    state = RandomState.capture()
    expected = draws()
    state.restore()
    with put_back([surroundings]) as models:
        assert models == [model]
        for _ in range(3):
            surroundings.restore()
            assert history == []
            assert torch.equal(closure(), first)
            assert history == [0.0]
    assert history == after == [0.0, 1.0]
    for name, buffer in model.named_buffers():
        assert torch.equal(now[name], buffer), name
    assert draws() == expected


def test_all_is_put_back_though_an_evaluation_fails(device):
    model = Counting()
    surroundings = Surroundings.capture(lambda: model, device_type=device)
    before = contents(model)

    def evaluated():
        with put_back([surroundings]):
            model(torch.randn(4, 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluated()
    for name, buffer in model.named_buffers():
        assert torch.equal(before[name], buffer), name
