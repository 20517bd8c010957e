"""Numbers that a recorder is given: taken if HDF5 and NumPy can hold them, refused in a sentence if not."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.loop.settings import checked_coordinates, checked_every, checked_gammas, checked_seed

ANYTHING = st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=5) | st.just(10**400)


@pytest.mark.parametrize(
    ("check", "least", "most"),
    [(checked_every, 1, 2**63 - 1), (checked_coordinates, 0, math.inf), (checked_seed, 0, 2**64 - 1)],
)
@given(value=ANYTHING)
@example(value=10**20)
@example(value=-1)
@example(value=True)
@example(value=0)
@settings(deadline=None)
def test_a_whole_number_in_its_range_or_a_sentence(check, least, most, value):
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and least <= value <= most:
        assert check(value) == value
    else:
        with pytest.raises(InvalidArgumentError):
            check(value)


@given(values=st.lists(ANYTHING | st.floats(0, 1), max_size=4))
@example(values=[10**400])
@example(values=[math.nan])
@example(values=["a"])
@settings(deadline=None)
def test_positions_are_numbers_in_the_step_or_a_sentence(values):
    try:
        gammas = checked_gammas(values)
    except InvalidArgumentError:
        return
    assert gammas
    assert all(0 < gamma <= 1 for gamma in gammas)


@pytest.mark.parametrize("more", [{"seed": 2**64 - 1}, {"every": 2**63 - 1}, {"coordinates": 10**20}, {"seed": 0}])
def test_the_largest_numbers_are_recorded_and_read_back(tmp_path, more):
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", **more) as recorder:
        recorder.backward(lambda: model(torch.ones(2, 4)).square().mean())
        optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert len(trace) == 1
        for name in ("seed", "every"):
            if name in more:
                assert int(trace.metadata[name]) == more[name]
