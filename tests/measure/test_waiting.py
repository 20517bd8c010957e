"""Nothing in a measured step waits for the device."""

import pytest
from loops import sgd, train
from waits import CountsWaits

import lsmooth

pytestmark = pytest.mark.usefixtures("device")


def test_nothing_in_a_measured_step_waits_for_the_device(tmp_path, model):
    optimizer = sgd(model, momentum=0.9)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        train(recorder, model, optimizer, 2)
        counts = CountsWaits()
        with counts:
            train(recorder, model, optimizer, 2)
        # The check sees what it is meant to see.
        with CountsWaits() as control:
            model[0].weight.sum().item()
    assert counts.seen == []
    assert control.seen
