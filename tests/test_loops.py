"""The recorder on every kind of training loop: it changes nothing, replays exactly, and measures right."""

import numpy as np
import pytest
import torch
from loops import LOOPS, Bare, Recorded, Reference, differences, everything, seed_all

import lsmooth
from lsmooth.handover import Handover


@pytest.fixture(params=LOOPS)
def loop(request):
    return LOOPS[request.param]


@pytest.fixture(autouse=True)
def gradients_taken_early(monkeypatch):
    """Take gradients as they arrive, in buckets of about one layer, as with models that are not as tiny as these."""
    monkeypatch.setattr("lsmooth.recorder._TAKEN_WHOLE_BYTES", 0)
    monkeypatch.setattr("lsmooth.recorder._BUCKET_LEAST_BYTES", 100)


def finished(loop, watch):
    seed_all()
    return everything(*loop(watch))


def test_run_with_recorder_is_bit_for_bit_the_run_without(loop, tmp_path):
    bare = finished(loop, Bare())
    recorded = finished(loop, Recorded(tmp_path / "run.h5"))
    assert differences(bare, recorded) == []


def test_replay_at_gamma_0_gives_the_steps_own_gradient_bit_for_bit(loop, tmp_path, monkeypatch):
    errors = []
    check, measure = Handover._check_replay, lsmooth.Recorder._measure

    def spy(self, rows, extra):
        errors.extend(extra["replay_error"])
        return check(self, rows, extra)

    def check_every_step(self, current):
        self._replay_checked = False
        return measure(self, current)

    monkeypatch.setattr(Handover, "_check_replay", spy)
    monkeypatch.setattr(lsmooth.Recorder, "_measure", check_every_step)
    finished(loop, Recorded(tmp_path / "run.h5"))
    assert len(errors) >= 4
    assert errors == [0.0] * len(errors)


def test_estimates_agree_with_a_slow_reference(loop, tmp_path):
    reference = Reference()
    finished(loop, reference)
    finished(loop, Recorded(tmp_path / "run.h5"))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert len(trace) == len(reference.rows)
        assert trace.parameters == reference.names
        for name in ("loss", "loss_along", "loss_next", "slope", "grad_norm", "step_norm", "grad_diff"):
            expected = np.array([row[name] for row in reference.rows])
            scale = np.abs(expected).max(initial=1e-30)
            np.testing.assert_allclose(trace.read(name), expected, rtol=2e-5, atol=2e-6 * scale, err_msg=name)
        coordinates = trace.coordinates
        for i, row in enumerate(reference.rows):
            for j, (owner, index) in enumerate(zip(coordinates["parameter"], coordinates["index"], strict=True)):

                def at(gradient, owner=owner, index=index):
                    return gradient[owner].flatten()[index].item() if gradient[owner].dim() else 0.0

                along = [at(gradient) for gradient in row["along"]]
                expected = [at(row["first"]), at(row["moved"]), *along, at(row["next"])]
                got = [
                    trace.read("coordinate/grad")[i, j],
                    trace.read("coordinate/displacement")[i, j],
                    *trace.read("coordinate/grad_along")[i, :, j],
                    trace.read("coordinate/grad_next")[i, j],
                ]
                np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-7)


def test_gradients_taken_all_at_once_give_the_same_numbers(tmp_path, monkeypatch):
    finished(LOOPS["accumulation"], Recorded(tmp_path / "early.h5"))
    monkeypatch.setattr("lsmooth.recorder._TAKEN_WHOLE_BYTES", 1 << 20)
    finished(LOOPS["accumulation"], Recorded(tmp_path / "whole.h5"))
    with lsmooth.Trace(tmp_path / "early.h5") as early, lsmooth.Trace(tmp_path / "whole.h5") as whole:
        for name in ("loss_along", "grad_diff", "coordinate/grad_along"):
            np.testing.assert_array_equal(early.read(name), whole.read(name))


def test_the_loops_are_measured_well(loop, tmp_path):
    finished(loop, Recorded(tmp_path / "run.h5"))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        if loop is LOOPS["half_precision"]:
            # bfloat16 keeps 8 bits: interpolated points are rounded by more than 1 % of the way, and it says so.
            assert set(trace.status_counts()) == {"below_resolution"}
        else:
            assert trace.status_counts() == {"measured": len(trace)}
            assert np.isfinite(trace.smoothness()["smoothness"]).all()
    assert torch.is_grad_enabled()
