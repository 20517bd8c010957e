"""What a page says of a run in words."""

import numpy as np
import pytest
from made_up import made_up

import lsmooth
from lsmooth.figures.report.facts import MEANINGS, every_nth, verdict
from lsmooth.trace.layout import Status


@pytest.mark.parametrize(
    ("smoothness", "says"),
    [
        (lambda x, noise: 2 + 3 * x * noise, "Smoothness grows with the gradient norm: smoothness is about"),
        (lambda x, noise: 20 + 0.3 * x + 0 * noise, "Smoothness hardly grows with the gradient norm: "),
        (lambda x, noise: 5 * noise, "It is not shown that smoothness grows with the gradient norm: "),
    ],
)
def test_the_verdict_says_what_the_fit_says(tmp_path, smoothness, says):
    def cloud(rows):
        generator = np.random.default_rng(1)
        count, tensors = rows["grad_norm"].shape[:2]
        x = np.exp(generator.normal(size=count))
        y = smoothness(x, np.exp(0.3 * generator.normal(size=count)))
        share = np.sqrt(1 / tensors)
        rows["grad_norm"][:] = (x * share)[:, None].reshape(rows["grad_norm"][:, :1].shape)
        rows["step_norm"][:] = share
        gammas = np.array([0.25, 0.5, 0.75])
        rows["grad_diff"][:] = (y[:, None] * gammas * share)[..., None]

    with lsmooth.Trace(made_up(tmp_path / "run.h5", steps=200, spoil=cloud)) as trace:
        found = verdict(trace)
        row = lsmooth.estimate(trace, method="trend").iloc[0]
        norms = trace.cloud().grad_norm[:, 0]
    assert found.startswith(says)
    low, high = row["L0"] + row["L1"] * np.percentile(norms, [5, 95])
    assert f"a factor of {high / low:.3g} over" in found
    assert f"{row['L0']:.3g} + {row['L1']:.3g} ‖g‖" in found


def test_every_flag_has_its_meaning():
    assert list(MEANINGS) == list(Status)


def test_an_even_choice_of_steps_is_a_cloud_of_its_own(tmp_path):
    with lsmooth.Trace(made_up(tmp_path / "run.h5", steps=10)) as trace:
        cloud = trace.cloud("parameter")
    assert every_nth(cloud, 1) is cloud
    third = every_nth(cloud, 3)
    assert third.steps.tolist() == cloud.steps[[0, 3, 6, 9]].tolist()
    np.testing.assert_array_equal(third.smoothness, cloud.smoothness[::3])
    np.testing.assert_array_equal(third.usable, cloud.usable[::3])
    assert third.groups == cloud.groups
