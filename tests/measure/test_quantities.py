"""The list of what is measured: each dataset is filled by something, and norms come last."""

import numpy as np
import pytest
import torch
from torch import nn

import lsmooth
from lsmooth.measure.quantities import GradientChanges, Point, Quantity, StepNorms, WeightNorms
from lsmooth.trace.layout import FIELDS

pytestmark = pytest.mark.usefixtures("device")


def quantities(tmp_path, **arguments):
    model = nn.Linear(3, 2)
    recorder = lsmooth.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run.h5", **arguments)
    recorder.close()
    return recorder._instrument._quantities


def test_norms_come_last_since_they_may_overwrite_gradients(tmp_path):
    kinds = [type(quantity) for quantity in quantities(tmp_path, densities=True)]
    assert kinds[-1] is GradientChanges
    assert {WeightNorms, StepNorms} <= set(kinds)
    assert len(kinds) == len(set(kinds))


def test_what_is_not_asked_for_is_not_measured(tmp_path):
    (tmp_path / "few").mkdir()
    few = {type(quantity).__name__ for quantity in quantities(tmp_path / "few", coordinates=0)}
    more = {type(quantity).__name__ for quantity in quantities(tmp_path, densities=True)}
    assert more - few == {"Coordinates", "Densities"}


def test_every_dataset_of_a_run_is_filled(tmp_path, device):
    """A field without a quantity would be zeros for ever."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 3)
    probes = [lambda part=part: model(part).square().mean() for part in (x[:2], x[2:])]
    norms = ("l2", "linf", "spectral")
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probes, norms=norms, critical=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        for field in FIELDS:
            if trace.has(field.name):
                values = trace.read(field.name)[1:]
                assert np.any(values != 0), field.name
                assert np.isfinite(values).all(), field.name


def test_a_point_knows_what_it_stands_for():
    assert Point(0.0).is_check
    assert not Point(0.5, 0).is_check
    assert not Point(1.0, None, True).is_check


def test_a_quantity_does_nothing_by_itself():
    """A new one overrides what it needs."""
    quantity = Quantity()
    assert quantity.at_start(None, None) is None
    assert quantity.arrived(Point(0.5, 0), [0], [torch.ones(1)], None) is None
    assert quantity.absent(Point(0.5, 0), 0, torch.ones(1)) is None
    assert quantity.at_point(Point(0.5, 0), torch.ones(()), None, None) is None
    assert quantity.at_last(None, None) is None
    assert quantity.at_end(torch.tensor(True), None) is None
    assert quantity.clear() is None
