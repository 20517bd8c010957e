"""What measures steps: how often losses are evaluated again, and what becomes of errors."""

import pytest
import torch
from loops import not_put_back
from torch import nn

import lsmooth
from lsmooth.trace.layout import Status

pytestmark = pytest.mark.usefixtures("device")


CALLS = not_put_back(number=0)


def run(path, loss, steps=4, **arguments):
    """Train a few steps, and return how often the loss was computed at each."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(2, 3)
    counts = []
    with lsmooth.Recorder(model, optimizer, path, **arguments) as recorder:
        for step in range(steps):
            CALLS.number = 0
            optimizer.zero_grad()
            recorder.backward(lambda step=step: loss(model(x), step))
            optimizer.step()
            counts.append(CALLS.number)
    return counts


def counted(output, step):
    CALLS.number += 1
    return output.square().mean()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [8, 7, 7, 7]),
        ({"endpoint": False}, [7, 6, 6, 6]),
        ({"gammas": (0.5, 1.0)}, [4, 3, 3, 3]),
        ({"gammas": (0.5,), "endpoint": False}, [3, 2, 2, 2]),
        ({"every": 2}, [8, 1, 7, 1]),
    ],
    ids=str,
)
def test_a_loss_is_computed_once_a_point_and_once_more_at_the_first_step(arguments, expected, tmp_path):
    assert run(tmp_path / "run.h5", counted, **arguments) == expected


def test_an_error_at_the_first_step_is_raised_and_later_ones_flag_a_step(tmp_path):
    def fails_at(bad):
        def loss(output, step):
            CALLS.number += 1
            if step == bad and CALLS.number > 1:
                raise ZeroDivisionError("again")
            return output.square().mean()

        return loss

    with pytest.raises(ZeroDivisionError, match="again"):
        run(tmp_path / "first.h5", fails_at(0))
    with pytest.warns(UserWarning, match="Step 2 is flagged"):
        run(tmp_path / "later.h5", fails_at(2))
    with lsmooth.Trace(tmp_path / "later.h5") as trace:
        assert trace.status_counts()["measured"] == 3
        assert trace.steps[trace.status & Status.NOT_REPEATED != 0].tolist() == [2]
