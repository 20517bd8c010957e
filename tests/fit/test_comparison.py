"""Which condition describes a run best."""

import numpy as np
import pandas as pd
import pytest
from known_clouds import LAWS, cloud_with, made_cloud, named_conditions
from scipy.stats import binom, norm, t

from lsmooth import fit
from lsmooth.fit.comparison import SIMPLEST_FIRST, judged
from lsmooth.fit.longrun import covariances

MEAN_SQUARE = 2 * norm.cdf(1) - 1 - 2 * norm.pdf(1) + 2 * norm.sf(1)


def test_held_out_errors_are_those_of_a_slow_reference():
    cloud = cloud_with(lambda x, loss: 1 + x + loss, n=101, noise=0.3)
    x, y, gap = cloud.grad_norm[:, 0], cloud.smoothness[:, 0], cloud.loss - cloud.loss.min()
    table = fit.compare(cloud).set_index("condition")
    assert list(table.index) == list(SIMPLEST_FIRST)
    errors = {name: [] for name in ("constant", "linear", "suboptimality")}
    for hidden in np.array_split(np.arange(101), 10):
        seen = np.setdiff1d(np.arange(101), hidden)
        # A trend on points with and without x = 0 at one height is flat.
        lines = {
            "constant": (x, fit.trend(np.arange(2 * len(seen)) >= len(seen), np.tile(y[seen], 2))),
            "linear": (x, fit.trend(x[seen], y[seen])),
            "suboptimality": (gap, fit.trend(gap[seen], y[seen])),
        }
        for name, (at, line) in lines.items():
            foretold = np.maximum(line[0] + line[1] * at[hidden], y.min())
            errors[name].extend(np.abs(np.log(y[hidden]) - np.log(foretold)))
    for name, values in errors.items():
        assert table.loc[name, "log_error"] == pytest.approx(np.mean(values), rel=1e-6)
        assert table.loc[name, "relative"] == pytest.approx(np.mean(values) / np.mean(errors["constant"]), rel=1e-6)
    assert table.best.sum() == 1


def test_chances_are_those_of_a_slow_reference():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(1, 90))
    foretold = np.stack([np.zeros((1, 90)), 0.5 * z + 0.3 * generator.normal(size=(1, 90))])
    errors, chances, best = judged(z, foretold)
    residual = np.array([z[0] - line[0] for line in foretold])
    away = (foretold[1] - foretold[0])[0]
    squared = np.mean(residual[1] ** 2) / MEAN_SQUARE
    for _ in range(500):
        squared = np.minimum(residual[1] ** 2, squared).mean() / MEAN_SQUARE
    cut = 1.5 * np.sqrt(squared)
    (variance,), degrees = covariances((np.clip(residual[1], -cut, cut) * away)[None, None])
    pointer = np.mean(np.clip(residual[0], -cut, cut) * away) / np.sqrt(variance[0, 0])
    assert chances[0, 0] == pytest.approx(t.sf(pointer, degrees), rel=1e-6)
    assert chances[1, 0] == 1
    np.testing.assert_allclose(errors[:, 0], np.abs(residual).mean(axis=1))
    assert best[0] == 1


@pytest.mark.parametrize("name", LAWS)
def test_verdicts_on_known_clouds(name):
    """A small version of the table on the page, by `python tests/known_clouds.py verdict`."""
    named = named_conditions(name, "proportional" if name != "constant" else "heavy-tailed, correlated", trials=20)
    right, share = LAWS[name].right, LAWS[name].share
    # So few right answers come once in 1,000 times where the share holds.
    fewest = binom.ppf(1e-3, 20, share)
    assert sum(named[condition] for condition in right) * 20 >= fewest


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
        {"condition": ["constant", "linear", "suboptimality", "power"], "log_error": [2.0, 0.5, 3.0, 0.4]}
    )
    table = table.assign(group="global", relative=table.log_error / 2, best=[True, False, False, False], reason="")
    table = table.assign(chance=[0.03, 0.2, 0.1, 1.0])
    said = fit.verdict(table, "global")
    assert "cannot be ruled out: held out, power errs 80% less" in said
    assert "in 3 % of runs" in said
    worse = table.assign(relative=[1.0, 1.1, 1.2, 1.3], log_error=[2.0, 2.2, 2.4, 2.6])
    assert "as well as any" in fit.verdict(worse, "global")
    named = table.assign(best=[False, True, False, False], chance=[1e-6, 0.2, 0.1, 1.0])
    said = fit.verdict(named, "global")
    assert "so clearly in fewer than 0.1 % of runs" in said
    assert said.endswith("power errs least, but not surely so (20 %).")


def test_noise_alone_is_rarely_taken_for_a_law():
    said = [fit.compare(cloud_with(lambda x, loss: 3 + 0 * x, seed, noise=0.1)) for seed in range(20)]
    assert sum(table.condition[table.best].item() == "constant" for table in said) >= 17


def test_no_comparison_without_points():
    cloud = made_cloud(groups=2, n=9)
    table = fit.compare(cloud)
    assert table.log_error.isna().all()
    assert not table.best.any()
    assert fit.verdict(table, "group 1") == "group 1: no comparison (9 usable points, 10 are needed)."
