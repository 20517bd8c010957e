"""What a trace says of a run before its first step."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import lsmooth
from lsmooth.loop.description import plain


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        ("a", "a"),
        ((1, 2.5), [1, 2.5]),
        ({1: {"b": (3,)}}, {"1": {"b": [3]}}),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([1, 2]), "tensor([1, 2])"),
        (torch.empty((), device="meta"), "tensor(..., device='meta', size=())"),
        (torch.float32, "torch.float32"),
        (nn.ReLU(), "ReLU()"),
    ],
    ids=str,
)
def test_values_become_what_json_can_hold(value, shown):
    assert plain(value) == shown
    json.dumps(plain(value))


def test_the_header_tells_model_optimizer_and_settings(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).double())
    optimizer = torch.optim.Adam([{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters()}])
    arguments = {"every": 3, "gammas": (0.5, 1.0), "coordinates": 1, "seed": 7, "norms": ("l2", "linf")}
    metadata = {"note": "a run", "shape": (1, np.int64(2))}
    lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", metadata=metadata, **arguments).close()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        said = trace.metadata
        assert trace.parameters == ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert trace.parameter_sizes.tolist() == [6, 2, 2, 1]
        assert trace.gammas.tolist() == [0.5, 1.0]
        assert len(trace.coordinate_names) == 4
    assert (said["model"], said["optimizer"]) == ("Sequential", "Adam")
    assert [group["lr"] for group in said["optimizer_groups"]] == [0.5, 1e-3]
    assert said["optimizer_groups"][0]["betas"] == [0.9, 0.999]
    assert said["parameter_shapes"] == [[2, 3], [2], [1, 2], [1]]
    assert said["dtype"] == "float32, float64"
    assert said["norms"] == ["l2", "linf"]
    assert (said["seed"], said["endpoint"]) == (7, 1)
    assert said["objective"] == "the step's mini-batch loss"
    assert said["user_metadata"] == {"note": "a run", "shape": [1, 2]}


def test_probes_are_the_objective(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [lambda: model(torch.ones(1, 3)).sum()] * 2
    lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probes).close()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.metadata["objective"] == "mean of 2 probe losses"
        assert trace.has("grad_noise")
