"""Losses behind a gradient scaler: the same numbers, and skipped steps flagged."""

import numpy as np
import pytest
import torch
from loops import Bare, Recorded, batches, classify, device_type, differences, everything, mlp, seed_all, sgd, simple
from torch import nn

import lsmooth
from lsmooth.trace.layout import Status

pytestmark = pytest.mark.usefixtures("device")


def scaled_loop(poisoned=()):
    def loop(watch):
        model = mlp()
        optimizer = sgd(model, 0.3)
        scaler = torch.amp.GradScaler(device_type(), init_scale=1024.0, growth_interval=2)
        watch.attach(model, optimizer)
        for i, (x, y) in enumerate(batches(7)):
            optimizer.zero_grad()
            factor = float("inf") if i in poisoned else 1.0
            watch.backward(lambda x=x, y=y, factor=factor: classify(model, x, y) * factor, scaler)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        watch.end()
        return model, optimizer

    return loop


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_the_slope_is_that_of_the_unscaled_gradient(scale, tmp_path):
    seed_all()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device_type(), init_scale=scale or 1.0, enabled=scale is not None)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(3):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y), scaler)
            scaler.step(optimizer)
            scaler.update()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    # Every step goes straight down: d = -lr grad f.
    np.testing.assert_allclose(trace.read("slope"), -0.1 * trace.read("total_grad_norm") ** 2, rtol=1e-4)


@pytest.mark.parametrize("poisoned", [(), (0,), (2, 3), (6,)])
def test_gradient_scaler_changes_nothing_and_its_skipped_steps_are_flagged(poisoned, tmp_path):
    results = []
    for watch in (Bare(), Recorded(tmp_path / "run.h5")):
        seed_all()
        results.append(everything(*scaled_loop(poisoned)(watch)))
    assert differences(*results) == []
    trace = lsmooth.Trace(tmp_path / "run.h5")
    # An attempt at the very end of a run that was skipped is known to be skipped by nothing that follows it.
    expected = [i for i in range(7) if not (i == 6 and 6 in poisoned)]
    assert trace.steps.tolist() == expected
    skipped = [bool(status & Status.NO_DISPLACEMENT) for status in trace.status]
    assert skipped == [i in poisoned for i in expected]
    assert all(status == Status.MEASURED for status, i in zip(trace.status, expected, strict=True) if i not in poisoned)


def test_gradients_behind_a_scaler_are_those_of_the_unscaled_loss(tmp_path):
    seed_all()
    scaled_loop()(Recorded(tmp_path / "scaled.h5"))
    seed_all()

    def unscaled(watch):
        model = mlp()
        return simple(
            model,
            sgd(model, 0.3),
            watch,
            steps=7,
            between=lambda i: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        )

    unscaled(Recorded(tmp_path / "plain.h5"))
    scaled, plain = lsmooth.Trace(tmp_path / "scaled.h5"), lsmooth.Trace(tmp_path / "plain.h5")
    for name in ("grad_norm", "grad_diff", "coordinate/grad", "coordinate/grad_along", "coordinate/grad_next"):
        np.testing.assert_allclose(scaled.read(name), plain.read(name), rtol=1e-4, atol=1e-7)
