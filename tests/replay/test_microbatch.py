"""Graphs that are deep, shared or walked twice."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from loops import batches, classify, mlp, sgd

import lsmooth
from lsmooth.replay.microbatch import reachable_leaves

DEEP = """
import sys, torch, lsmooth
from torch import nn
torch.set_num_threads(1)
model, x, start = nn.Linear(2, 2), torch.ones(1, 2), torch.zeros(1, 2, requires_grad=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def loss(h):
    for _ in range(20_000):
        h = torch.tanh(model(h) + x)
    return h.square().mean()
with lsmooth.Recorder(model, optimizer, sys.argv[1], gammas=(0.5,), endpoint=False) as recorder:
    compute = recorder.watch(loss)
    for way in (lambda: recorder.backward(lambda: loss(start)), lambda: compute(start).backward()):
        optimizer.zero_grad()
        start.grad = None
        way()
        before = start.grad.clone()
        optimizer.step()
        assert torch.equal(start.grad, before)
print(lsmooth.Trace(sys.argv[1]).status_counts())
"""


def test_a_loss_of_twenty_thousand_steps_is_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DEEP, str(tmp_path / "run.h5")], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "{'measured': 2}\n"


def test_leaves_of_a_graph_are_found_once_each():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    c = a * b
    assert {id(leaf) for leaf in reachable_leaves((c * c + a).sum())} == {id(a), id(b)}
    assert reachable_leaves(a) == [a]
    assert reachable_leaves(torch.ones(1)) == []


def gradients_along(path, run):
    """Return gradient norm and changes of one measured step of a watched loss, which `run` calls backward from."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, path) as recorder:
        compute = recorder.watch(lambda: classify(model, x, y))
        run(compute, list(model.parameters()))
        optimizer.step()
    trace = lsmooth.Trace(path)
    assert trace.status_counts() == {"measured": 1}
    return np.concatenate([trace.read("grad_norm").ravel(), trace.read("grad_diff").ravel()])


CORNERS = {
    "grad first": (1, lambda f, p: _grad_then_backward(f, p)),
    "grad of another call": (1, lambda f, p: (torch.autograd.grad(f(), p), f().backward())),
    "retained": (2, lambda f, p: _twice(f())),
    "two losses in one": (2, lambda f, p: (f() + f()).backward()),
    "one loss twice in one": (2, lambda f, p: _added(f())),
}


def _grad_then_backward(compute, parameters):
    loss = compute()
    torch.autograd.grad(loss, parameters, retain_graph=True)
    loss.backward()


def _twice(loss):
    loss.backward(retain_graph=True)
    loss.backward()


def _added(loss):
    (loss + loss).backward()


@pytest.mark.parametrize("corner", CORNERS)
def test_corners_of_autograd_are_counted_as_the_loss_that_they_make(corner, tmp_path):
    factor, run = CORNERS[corner]
    got = gradients_along(tmp_path / "run.h5", run)
    want = gradients_along(tmp_path / "own.h5", lambda f, p: (f() * factor).backward())
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
