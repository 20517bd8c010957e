"""Which condition describes a run best."""

import numpy as np
import pandas as pd
import pytest
from known_clouds import cloud_with, made_cloud, pinball

from lsmooth import fit
from lsmooth.fit.comparison import SIMPLEST_FIRST


def test_held_out_losses_are_those_of_a_slow_reference():
    cloud = cloud_with(lambda x, loss: 1 + x + loss, n=101, noise=0.3)
    x, y, gap = cloud.grad_norm[:, 0], cloud.smoothness[:, 0], cloud.loss - cloud.loss.min()
    table = fit.compare(cloud, q=0.9).set_index("condition")
    assert list(table.index) == list(SIMPLEST_FIRST)
    losses = {name: [] for name in ("constant", "linear", "suboptimality")}
    for hidden in np.array_split(np.arange(101), 5):
        seen = np.setdiff1d(np.arange(101), hidden)
        lines = {
            "constant": (x, (np.quantile(y[seen], 0.9, method="inverted_cdf"), 0.0)),
            "linear": (x, fit.quantile(x[seen], y[seen], 0.9)),
            "suboptimality": (gap, fit.quantile(gap[seen], y[seen], 0.9)),
        }
        for name, (at, line) in lines.items():
            losses[name].append(pinball(at[hidden], y[hidden], 0.9, line) / len(hidden))
    for name, values in losses.items():
        assert table.loc[name, "pinball"] == pytest.approx(np.mean(values), rel=1e-6)
        assert table.loc[name, "relative"] == pytest.approx(np.mean(values) / np.mean(losses["constant"]), rel=1e-6)
    assert table.best.sum() == 1


@pytest.mark.parametrize(
    ("best", "smoothness"),
    [
        ("constant", lambda x, loss: 3 + 0 * x),
        ("linear", lambda x, loss: 1 + 2 * x),
        ("suboptimality", lambda x, loss: 1 + 2 * (loss - 1)),
        ("power", lambda x, loss: 1 + 0.3 * x**2),
    ],
)
def test_the_condition_that_made_a_cloud_describes_it_best(best, smoothness):
    table = fit.compare(cloud_with(smoothness, noise=0.1))
    assert table.condition[table.best].tolist() == [best]
    said = fit.verdict(table, "global")
    assert ("plain smoothness" in said) if best == "constant" else said.startswith(f"global: {best}, ")


def test_a_condition_that_errs_less_but_not_surely_so_is_said_to_be_in_doubt():
    table = pd.DataFrame(
        {"condition": ["constant", "linear", "suboptimality", "power"], "pinball": [2.0, 0.5, 3.0, 0.4]}
    )
    table = table.assign(group="global", relative=table.pinball / 2, best=[True, False, False, False], reason="")
    assert "cannot be ruled out: held out, power errs 80% less" in fit.verdict(table, "global")
    worse = table.assign(relative=[1.0, 1.1, 1.2, 1.3], pinball=[2.0, 2.2, 2.4, 2.6])
    assert "as well as any" in fit.verdict(worse, "global")


def test_noise_alone_is_rarely_taken_for_a_law():
    said = [fit.compare(cloud_with(lambda x, loss: 3 + 0 * x, seed, noise=0.1)) for seed in range(20)]
    assert sum(table.condition[table.best].item() == "constant" for table in said) >= 17


def test_no_comparison_without_points():
    cloud = made_cloud(groups=2, n=9)
    table = fit.compare(cloud)
    assert table.pinball.isna().all()
    assert not table.best.any()
    assert fit.verdict(table, "group 1") == "group 1: no comparison (9 usable points, 10 are needed)."
