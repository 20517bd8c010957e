"""What a closure can read and change is found through variables, attributes, hooks and small containers."""

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

from lsmooth.replay.reach import reached


class Trainer:
    """Holds a model as trainers do."""

    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self):
        return self.model(torch.ones(1, 2)).sum()


def ways():
    model = nn.Linear(2, 1)
    holder = {"nets": [model]}
    trainer = Trainer(model)

    def by_default(net=model):
        return net

    def inner():
        return model

    return model, {
        "variable": lambda: model,
        "default": by_default,
        "partial": functools.partial(lambda net: net, model),
        "method": trainer.loss,
        "attribute": lambda: trainer.model,
        "container": lambda: holder["nets"][0],
        "function": lambda: inner(),
        "argument": model,
    }


@pytest.mark.parametrize("way", ways()[1])
def test_a_model_is_found(way):
    model, starts = ways()
    assert reached(starts[way]).models == [model]


def test_modules_that_others_register_are_part_of_them_and_those_in_lists_are_not():
    inside, beside = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(inside)
    model.critics = [beside]
    assert reached(lambda: model).models == [model, beside]


@pytest.mark.parametrize(
    "generator",
    [torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0)],
    ids=lambda generator: type(generator).__name__,
)
def test_generators_of_ones_own_are_found(generator):
    model = nn.Linear(1, 1)
    model.noise = generator
    for start in (lambda: generator, lambda: model):
        assert reached(start).generators == [generator]
    # The system's has no state to be put back.
    system = random.SystemRandom()
    assert reached(lambda: system).generators == []


def test_tensors_are_found_but_for_those_of_an_optimizer():
    model = nn.Linear(2, 1)
    trainer = Trainer(model)
    inputs = torch.ones(3, 2)
    trainer.optimizer.secret = torch.ones(5)
    found = reached(lambda: (trainer, inputs)).tensors
    assert [t for t in found if t is inputs] == [inputs]
    assert not [t for t in found if t is trainer.optimizer.secret]


def test_a_circle_is_walked_once():
    first, second = {}, {}
    first["other"], second["other"] = second, first
    holders = reached(lambda: first).holders
    assert len([holder for holder in holders if holder is first]) == 1
    assert len([holder for holder in holders if holder is second]) == 1


def test_containers_of_data_are_not_gone_through():
    class Noted(nn.Module):
        pass

    model = Noted()
    data = [model, *range(1_000)]
    assert reached(lambda: data).models == []
    few = [model, *range(10)]
    assert reached(lambda: few).models == [model]
