"""Losses that carry a state of their own: training is bit for bit the same, every step is measured, none is flagged."""

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from loops import classify, mlp, seed_all, sgd
from torch import nn
from torch.nn import functional as F

import lsmooth

STEPS = 5
LOSSES = {}


def loss(make):
    """Note a function that returns a model, its loss, and what tells of the loss's state afterwards."""
    LOSSES[make.__name__] = make
    return make


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)


X, Y = data()


@loss
def mean_teacher():
    """Follows the student inside of the loss, through `.data`."""
    model = mlp(nn.Dropout(0.2))
    teacher = copy.deepcopy(model).requires_grad_(False)

    def compute():
        for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
            slow.data.mul_(0.9).add_(fast.data, alpha=0.1)
        return classify(model, X, Y) + F.mse_loss(model(X), teacher(X))

    return model, compute, lambda: [p.tolist() for p in teacher.parameters()]


@loss
def queue_of_negatives():
    """A buffer that is written in parts, and a place in it that is a plain number."""

    class Contrast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.place = mlp(), 0
            self.register_buffer("queue", torch.randn(3, 32))

        def forward(self, x):
            found = F.normalize(self.net(x), dim=1)
            scores = torch.cat([(found * found.detach()).sum(1, keepdim=True), found @ self.queue.clone()], 1)
            self.queue[:, self.place : self.place + 16] = found.detach().T
            self.place = (self.place + 16) % 32
            return scores

    model = Contrast()
    targets = torch.zeros(16, dtype=torch.long)
    return model, lambda: F.cross_entropy(model(X), targets), lambda: (model.place, model.queue.tolist())


@loss
def buffer_that_grows():
    model = mlp()
    model.register_buffer("seen", torch.zeros(0, 3))

    def compute():
        out = model(X)
        model.seen = torch.cat([model.seen, out.detach().mean(0, keepdim=True)])
        return F.cross_entropy(out, Y) + 0.1 * model.seen.square().mean()

    return model, compute, lambda: model.seen.tolist()


@loss
def batch_in_slots():
    @dataclasses.dataclass(slots=True)
    class Batch:
        inputs: torch.Tensor
        used: int = 0

    model, batch = mlp(), Batch(X)

    def compute():
        batch.used += 1
        batch.inputs = batch.inputs * 1.01
        return classify(model, batch.inputs, Y)

    return model, compute, lambda: (batch.used, batch.inputs.tolist())


@loss
def drawn_and_counted_by_numpy():
    model, generator, counts, order = mlp(), np.random.default_rng(3), np.zeros(3), []

    def compute():
        chosen = generator.permutation(16)[:8]
        order.append(chosen)
        np.add.at(counts, Y[chosen].numpy(), 1)
        return classify(model, X[chosen], Y[chosen])

    return model, compute, lambda: (counts.tolist(), [c.tolist() for c in order], generator.integers(10**6))


@loss
def hidden_state_from_batch_to_batch():
    model, hidden = nn.ModuleList([nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)]), None

    def compute():
        nonlocal hidden
        out, hidden = model[0](X.view(4, 4, 6), hidden)
        hidden = tuple(part.detach() for part in hidden)
        return F.cross_entropy(model[1](out).flatten(0, 1), Y)

    return model, compute, lambda: [part.tolist() for part in hidden]


def trained(name, path=None, *, watched=False):
    """Train; return weights, the loss's state, and the random state."""
    seed_all()
    model, compute, state = LOSSES[name]()
    optimizer = sgd(model, lr=0.1)
    recorder = None if path is None else lsmooth.Recorder(model, optimizer, path)
    function = recorder.watch(compute) if watched else compute
    for _ in range(STEPS):
        optimizer.zero_grad()
        if recorder is None or watched:
            function().backward()
        else:
            recorder.backward(compute)
        optimizer.step()
    if recorder is not None:
        recorder.close()
    return [p.tolist() for p in model.parameters()], state(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_training_is_the_same_and_each_step_measured(name, watched, tmp_path):
    bare = trained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained(name, tmp_path / "run.h5", watched=watched) == bare
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": STEPS}
