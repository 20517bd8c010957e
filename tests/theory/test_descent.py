"""The descent check against closed forms."""

import math

import numpy as np
import pytest
import torch
from older_format import rewrite_as

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.theory import descent_check
from lsmooth.trace.layout import FORMAT_VERSION


def traced(path, loss, start, lr, steps=12, **arguments):
    """Train one vector in float64 on a loss of it, every step measured."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.x = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with lsmooth.Recorder(model, optimizer, path, **arguments) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            recorder.backward(lambda: loss(model.x))
            optimizer.step()
    return lsmooth.Trace(path)


def test_on_a_parabola_prediction_and_change_agree(tmp_path):
    trace = traced(tmp_path / "run.h5", lambda x: 1.5 * x.square().sum(), [1.0, -2.0], 0.1)
    check = descent_check(trace, L0=3.0, L1=0.0)
    x = np.sqrt(5) * 0.7 ** np.arange(12)
    np.testing.assert_allclose(check.frame["slope"], -0.1 * (3 * x) ** 2, rtol=1e-9)
    np.testing.assert_allclose(check.frame["seen"], 1.5 * x**2 * (0.49 - 1), rtol=1e-9)
    np.testing.assert_allclose(check.frame["predicted"], check.frame["seen"], rtol=1e-9)
    assert (check.share, check.within_reach) == (1.0, 12)


def test_constants_that_are_too_small_are_found_out(tmp_path):
    trace = traced(tmp_path / "run.h5", lambda x: 1.5 * x.square().sum(), [1.0, -2.0], 0.1)
    assert descent_check(trace, L0=2.9, L1=0.0).share == 0.0
    assert descent_check(trace, L0=2.9, L1=0.5).share > 0


def test_steps_out_of_reach_do_not_count(tmp_path):
    trace = traced(tmp_path / "run.h5", lambda x: 1.5 * x.square().sum(), [1.0, -2.0], 0.1)
    check = descent_check(trace, L0=0.0, L1=5.0)
    moved = 0.3 * np.sqrt(5) * 0.7 ** np.arange(12)
    np.testing.assert_allclose(check.frame["reach"], 5 * moved, rtol=1e-6)
    assert check.within_reach == (5 * moved <= 1).sum() < 12
    assert math.isnan(descent_check(trace, L0=0.0, L1=1e9).share)


@pytest.mark.parametrize(("recorded", "rel"), [(True, 1e-12), (False, 1e-7)])
def test_the_slope_of_a_quartic_is_exact_recorded_or_fitted(tmp_path, recorded, rel):
    trace = traced(tmp_path / "run.h5", lambda x: (x**4).sum() - x.sum(), [1.0, -0.5], 0.05, steps=5)
    if not recorded:
        rewrite_as(trace.path, "1.0")
        trace.refresh()
    assert trace.has("slope") == recorded
    check = descent_check(trace, L0=50.0, L1=0.0)
    x = np.array([1.0, -0.5])
    for slope in check.frame["slope"]:
        g = 4 * x**3 - 1
        assert slope == pytest.approx(-0.05 * (g**2).sum(), rel=rel)
        x = x - 0.05 * g


def test_a_recorded_slope_needs_no_smooth_losses_between(tmp_path):
    trace = traced(tmp_path / "run.h5", lambda x: (40 * x).cos().sum() + x.abs().sum(), [1.0, -0.5], 0.02, steps=5)
    check = descent_check(trace, L0=1600.0, L1=0.0)
    x = np.array([1.0, -0.5])
    for slope in check.frame["slope"]:
        g = -40 * np.sin(40 * x) + np.sign(x)
        assert slope == pytest.approx(-0.02 * (g**2).sum(), rel=1e-10)
        x = x - 0.02 * g


def test_a_continued_trace_of_format_1_0_has_slopes_from_then_on(tmp_path):
    def run(**arguments):
        return traced(tmp_path / "run.h5", lambda x: 1.5 * x.square().sum(), [1.0, -2.0], 0.1, steps=40, **arguments)

    run().close()
    rewrite_as(tmp_path / "run.h5", "1.0")
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.metadata["format_version"] == "1.0"
        assert not trace.has("slope")
    with run(mode="a") as trace:
        assert trace.metadata["format_version"] == FORMAT_VERSION
        assert np.isnan(trace.read("slope")[:40]).all()
        x = np.sqrt(5) * 0.7 ** np.arange(40)
        np.testing.assert_allclose(trace.read("slope")[40:], -0.1 * (3 * x) ** 2, rtol=1e-9)
        # Rows without a slope have theirs fitted.
        np.testing.assert_allclose(
            descent_check(trace, L0=3.0, L1=0.0).frame["slope"][:40], -0.1 * (3 * x) ** 2, rtol=1e-6
        )


def test_fitted_constants_hold_along_a_real_run(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        check = descent_check(trace)
        norms = trace.read("grad_norm").astype(float), trace.read("step_norm").astype(float)
        exact = -(norms[0] * norms[1]).sum(axis=1)
    # The run is SGD without momentum, clipped: d points against the gradient.
    np.testing.assert_allclose(check.frame["slope"], exact[trace.status == 1], rtol=0.02)
    assert check.within_reach > 0
    assert check.share > 0.95


def test_descent_check_refuses(tmp_path, small_trace):
    trace = traced(tmp_path / "run.h5", lambda x: x.square().sum(), [1.0], 0.1, steps=3, endpoint=False)
    with pytest.raises(TraceError, match="without the endpoint"):
        descent_check(trace)
    with lsmooth.Trace(small_trace) as trace:
        with pytest.raises(InvalidArgumentError, match="belong together"):
            descent_check(trace, L0=1.0)
        with pytest.raises(InvalidArgumentError, match="at least 0"):
            descent_check(trace, L0=1.0, L1=-1.0)
    short = traced(tmp_path / "short.h5", lambda x: x.square().sum(), [1.0], 0.1, steps=3)
    with pytest.raises(TraceError, match="cannot be fitted"):
        descent_check(short)
