"""Late averaging against the published loop, and against means written out."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lsmooth.tasks.averaging import LateAverage, has_stopped_improving


def published_start(losses, nonmono):
    """Return at which check the authors' code begins to average: its loop, with its names."""
    best_val_loss = []
    for check, val_loss in enumerate(losses):
        if len(best_val_loss) > nonmono and val_loss > min(best_val_loss[:-nonmono]):
            return check
        best_val_loss.append(val_loss)
    return None


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_averaging_starts_where_the_published_code_starts(interval):
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(200):
        losses = list(np.exp(-0.3 * np.arange(20)) + rng.normal(0, 0.05, 20))
        average = LateAverage(nn.Linear(2, 1), lambda: nn.Linear(2, 1), interval)
        found = None
        for check, loss in enumerate(losses):
            average.check(loss)
            if average.started and found is None:
                found = check
        assert found == published_start(losses, interval)
        starts.add(found)
    assert len(starts) > 3


def test_a_loss_that_falls_never_starts_it():
    assert not any(has_stopped_improving(list(np.linspace(3, 1, n)), 5) for n in range(1, 60))
    # The sixth check has only five before it: none is more than five before.
    assert not has_stopped_improving([1, 2, 2, 2, 2, 2], 5)
    assert has_stopped_improving([1, 2, 2, 2, 2, 2, 2], 5)
    assert not has_stopped_improving([1, 2, 2, 2, 2, 2, math.nan], 5)


def test_the_mean_is_that_of_the_steps_since():
    model = nn.Linear(3, 2)
    average = LateAverage(model, lambda: nn.Linear(3, 2), 1)
    seen = []
    for step in range(9):
        nn.init.normal_(model.weight)
        average.after_step()
        if step >= 4:
            seen.append(model.weight.detach().clone())
            torch.testing.assert_close(average.mean.weight, torch.stack(seen).mean(0), rtol=1e-6, atol=1e-6)
        else:
            assert average.mean is None
        average.check([3.0, 2.0, 2.5, 4.0, 5.0, 5.0, 1.0, 1.0, 1.0][step])


def test_a_saved_state_goes_on():
    model = nn.Linear(3, 2)
    one, other = (LateAverage(model, lambda: nn.Linear(3, 2), 1) for _ in range(2))
    for step in range(12):
        if step in (2, 7):
            other.load_state_dict(one.state_dict())
        nn.init.normal_(model.weight)
        for average in (one, other):
            average.after_step()
            average.check([3.0, 2.0, 2.5, 4.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0][step])
    assert one.mean is not None
    assert torch.equal(one.mean.weight, other.mean.weight)
