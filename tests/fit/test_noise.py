"""The noise of gradients: clouds whose constants are known, and what a trace lacks."""

import numpy as np
import pytest
from noisy_runs import PROBES, S0, S1, SIZE, simulated

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.fit import estimate_noise
from lsmooth.fit.noise import noise_cloud


def test_the_constants_of_a_known_cloud_are_found(tmp_path):
    norm, sigma = simulated(tmp_path / "run.h5")
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        row = estimate_noise(trace).iloc[0]
        cloud = noise_cloud(trace)
    assert row.s0 == pytest.approx(S0, rel=0.05)
    assert row.s1 == pytest.approx(S1, rel=0.05)
    assert row.noise_scale == pytest.approx(SIZE * (sigma**2).sum() / (norm**2).sum(), rel=0.05)
    assert row.sigma == pytest.approx(np.median(sigma), rel=0.05)
    assert (row.probes, row.points, row.left_out) == (PROBES, 300, 0)
    np.testing.assert_allclose(cloud.variance[:, 0], sigma**2, rtol=0.25)


def test_intervals_hold_the_constants_as_often_as_they_say(tmp_path):
    held = []
    for seed in range(60):
        _norm, _sigma = simulated(tmp_path / f"{seed}.h5", seed=seed, steps=100)
        with lsmooth.Trace(tmp_path / f"{seed}.h5") as trace:
            row = estimate_noise(trace).iloc[0]
        held.append([row.s0_low <= S0 <= row.s0_high, row.s1_low <= S1 <= row.s1_high])
    # Of 60 trials of 90 %, fewer than 46 have a chance of 1 in 1000.
    assert (np.sum(held, axis=0) >= 46).all()


def test_the_norm_of_the_probes_mean_is_freed_of_its_noise(tmp_path):
    """Noise of each probe is twice the gradient, which doubles the squared norm of the mean of four probes."""
    norm, _sigma = simulated(tmp_path / "run.h5", s0=0.0, s1=2.0, steps=1000)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        row = estimate_noise(trace).iloc[0]
        raw = trace.read("grad_norm")[:, 0] ** 2
    assert row.s1 == pytest.approx(2.0, rel=0.05)
    assert row.noise_scale == pytest.approx(4 * SIZE, rel=0.1)
    assert raw.mean() / (norm**2).mean() == pytest.approx(1 + 4 / PROBES, rel=0.1)
    assert row.noise_scale_low <= 4 * SIZE <= row.noise_scale_high


def test_steps_whose_gradient_noise_hides_count_as_none_and_are_counted(tmp_path):
    simulated(tmp_path / "run.h5", s0=3.0, scale=0.3)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        hidden = int((noise_cloud(trace).squared <= 0).sum())
        row = estimate_noise(trace).iloc[0]
    assert hidden > 50
    assert f"at {hidden} steps the gradient is below the noise" in row.reason
    assert row.s0 == pytest.approx(3.0, rel=0.1)


def test_groups_have_their_own_and_the_batch_may_be_given(tmp_path):
    simulated(tmp_path / "run.h5", attributes={"objective": f"mean of {PROBES} probe losses"}, tensors=4)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        table = estimate_noise(trace, "module")
        assert table.group.tolist() == [f"layer{i}" for i in range(4)]
        assert np.isnan(table.noise_scale).all()
        assert table.reason.str.contains("give probe_size").all()
        sized = estimate_noise(trace, "module", probe_size=10, confidence=None)
        assert sized.noise_scale[0] > 0
        assert np.isnan(sized.noise_scale_low).all()
        # The other tensors have no gradient but noise.
        assert sized.reason[1:].str.contains("noise hides the gradient|below the noise").all()
        with pytest.raises(InvalidArgumentError, match="by='coordinate' has no noise"):
            estimate_noise(trace, "coordinate")
        with pytest.raises(TraceError, match="recorded without the linf norm"):
            estimate_noise(trace, norm="linf")


def test_traces_without_probes_say_so(tmp_path, small_trace):
    with lsmooth.Trace(small_trace) as trace, pytest.raises(TraceError, match="record with two probes or more"):
        estimate_noise(trace)
    simulated(tmp_path / "run.h5", attributes={"objective": "something"})
    with lsmooth.Trace(tmp_path / "run.h5") as trace, pytest.raises(TraceError, match="how many probes"):
        estimate_noise(trace)
