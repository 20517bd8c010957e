"""A small training run, recorded or not, for tests of what happens to its trace meanwhile."""

import torch
from torch import nn

import lsmooth


def train(path, steps, after=None, record=True, **arguments):
    """Train `steps` steps, call `after` with each step's number, and return what training came to."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = lsmooth.Recorder(model, optimizer, path, **arguments) if record else None
    for step in range(steps):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        if recorder is None:
            model(x).square().mean().backward()
        else:
            recorder.backward(lambda x=x: model(x).square().mean())
        optimizer.step()
        if after is not None:
            after(step, recorder)
    if recorder is not None:
        recorder.close()
    return [*(parameter.detach().clone() for parameter in model.parameters()), torch.get_rng_state()]
