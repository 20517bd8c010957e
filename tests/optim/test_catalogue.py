"""Optimizers by name."""

import inspect
import subprocess
import sys

import pytest
import torch
from optimizers import weights

from lsmooth import optim


@pytest.mark.parametrize("name", optim.NAMES)
def test_every_name_builds_and_takes_what_it_says(name):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.build(name, [p], **optim.hyperparameters(name))
    p.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    assert p[0] < 1 < p[1]


@pytest.mark.parametrize("name", optim.NAMES)
def test_listed_defaults_are_those_of_the_classes(name):
    """The catalogue states defaults without importing torch; where a class has one, too, they agree."""
    built = optim.build(name, weights())
    signature = {}
    for cls in reversed(type(built).__mro__):
        signature |= inspect.signature(cls.__init__).parameters
    chosen = {"momentum": "sgd-momentum" in name or "clip-momentum" in name, "max_norm": True, "lr": "clip" in name}
    for key, value in optim.hyperparameters(name).items():
        if key in built.defaults:
            assert built.defaults[key] == value
        if key in signature and signature[key].default is not inspect.Parameter.empty and not chosen.get(key):
            assert signature[key].default == value


def test_reading_the_names_does_not_import_torch():
    script = "import sys, lsmooth.optim as o; o.NAMES, o.hyperparameters('adam'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
