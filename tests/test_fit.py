"""Lines through clouds, against SciPy's solvers and brute force; estimates of groups."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog, nnls
from scipy.stats import spearmanr

import lsmooth
from lsmooth import fit
from lsmooth.fit.lines import envelopes, quantiles, trends
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.layout import Status

# Clouds of all shapes: how smoothness follows from gradient norms and noise.
SHAPES = {
    "both": lambda x, noise: (1 + 2 * x) * noise,
    "through origin": lambda x, noise: 2 * x * noise,
    "flat": lambda x, noise: noise,
    "late": lambda x, noise: np.maximum(0, x - 1) + 0.1 * noise,
    "falling": lambda x, noise: noise / x,
    "ties": lambda x, noise: np.round((1 + 2 * x) * noise),
    "mostly zero": lambda x, noise: np.maximum(0, noise - 1.2) * x,
}


def cloud_of(shape, n, seed):
    generator = np.random.default_rng([seed, n])
    x = np.exp(generator.normal(0, 1, n))
    if shape == "ties":
        x = np.round(x, 1)
    return x, SHAPES[shape](x, np.exp(generator.normal(0, 0.5, n)))


def pinball(x, y, q, line):
    residual = y - line[0] - line[1] * x
    return np.maximum(q * residual, (q - 1) * residual).sum()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [3, 10, 61, 200])
def test_trend_is_that_of_nnls(shape, n):
    for seed in range(5):
        x, y = cloud_of(shape, n, seed)
        expected, _ = nnls(np.column_stack([np.ones(n), x]), y)
        np.testing.assert_allclose(fit.trend(x, y), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [3, 10, 61, 200])
def test_envelope_is_that_of_linprog(shape, n):
    for seed in range(5):
        x, y = cloud_of(shape, n, seed)
        found = fit.envelope(x, y)
        design = np.column_stack([np.ones(n), x])
        expected = linprog(design.mean(axis=0), A_ub=-design, b_ub=-y, method="highs")
        assert design.mean(axis=0) @ found == pytest.approx(expected.fun, rel=1e-9, abs=1e-12)
        assert (y - design @ found).max() <= 1e-12 * y.max()
        assert min(found) >= 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [3, 10, 61, 200])
@pytest.mark.parametrize("q", [0.1, 0.5, 0.95])
def test_quantile_is_that_of_linprog(shape, n, q):
    for seed in range(3):
        x, y = cloud_of(shape, n, seed)
        found = fit.quantile(x, y, q)
        design = np.column_stack([np.ones(n), x])
        expected = linprog(
            np.concatenate([[0, 0], np.full(n, q), np.full(n, 1 - q)]),
            A_eq=np.column_stack([design, np.eye(n), -np.eye(n)]),
            b_eq=y,
            method="highs",
        )
        assert pinball(x, y, q, found) == pytest.approx(expected.fun, rel=1e-9, abs=1e-12)
        assert min(found) >= 0


def test_envelope_and_quantile_are_the_best_of_all_lines_through_two_points():
    x, y = cloud_of("both", 25, 1)
    lines = [(height, 0.0) for height in y] + [(0.0, b / a) for a, b in zip(x, y, strict=True)]
    for i in range(25):
        for j in range(i):
            slope = (y[i] - y[j]) / (x[i] - x[j])
            lines.append((y[i] - slope * x[i], slope))
    lines = [line for line in lines if min(line) >= 0]
    above = [line for line in lines if (y <= line[0] + line[1] * x + 1e-9).all()]
    lowest = min(above, key=lambda line: line[0] + line[1] * x.mean())
    np.testing.assert_allclose(fit.envelope(x, y), lowest, rtol=1e-9)
    best = min(lines, key=lambda line: pinball(x, y, 0.8, line))
    np.testing.assert_allclose(fit.quantile(x, y, 0.8), best, rtol=1e-9)


def test_envelope_is_the_hull_edge_over_the_mean():
    from scipy.spatial import ConvexHull

    x, y = cloud_of("both", 4000, 0)
    points = np.column_stack([np.append(x, 0), np.append(y, 0)])
    hull = ConvexHull(points)
    for i, j in hull.simplices:
        left, right = sorted([points[i], points[j]], key=lambda point: point[0])
        slope = (right[1] - left[1]) / (right[0] - left[0])
        level = left[1] - slope * left[0]
        if left[0] <= x.mean() < right[0] and level + slope * x.mean() > np.interp(x.mean(), x, y):
            upper = (level, slope) if (points[:, 1] <= level + slope * points[:, 0] + 1e-9).all() else None
            if upper:
                break
    np.testing.assert_allclose(fit.envelope(x, y), upper, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_many_clouds_at_once_are_fitted_as_each_alone(shape):
    clouds = [cloud_of(shape, 40, seed) for seed in range(30)]
    x, y = (np.array(values) for values in zip(*clouds, strict=True))
    for many, one in ((trends, fit.trend), (envelopes, fit.envelope), (lambda x, y: quantiles(x, y, 0.9), None)):
        level, slope = many(x, y)
        for row in range(30):
            alone = one(x[row], y[row]) if one else fit.quantile(x[row], y[row], 0.9)
            if one is None:
                # Where several lines are equally good, scaling may decide.
                together = pinball(x[row], y[row], 0.9, (level[row], slope[row]))
                assert together == pytest.approx(pinball(x[row], y[row], 0.9, alone), rel=1e-9, abs=1e-12)
            else:
                np.testing.assert_allclose((level[row], slope[row]), alone, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("power_x", [-140, 0, 140])
@pytest.mark.parametrize("power_y", [-140, 0, 140])
def test_units_do_not_matter(power_x, power_y):
    x, y = cloud_of("both", 50, 0)
    for line in (fit.trend, fit.quantile, fit.envelope):
        level, slope = line(x, y)
        scaled = line(x * 10.0**power_x, y * 10.0**power_y)
        expected = (level * 10.0**power_y, slope * 10.0 ** (power_y - power_x))
        np.testing.assert_allclose(scaled, expected, rtol=1e-9, atol=0)


def test_known_lines():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    for line in (fit.trend, fit.quantile, fit.envelope):
        np.testing.assert_allclose(line(x, 1 + 2 * x), (1, 2), rtol=1e-12)
        np.testing.assert_allclose(line(x, 2 * x), (0, 2), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(line(x, np.full(4, 3.0)), (3, 0), rtol=1e-12)
        assert line(x, np.zeros(4)) == (0, 0)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2], [1, 2, 3], "shape"),
        ([[1, 2]], [[1, 2]], "shape"),
        ([1, 2, np.nan], [1, 2, 3], "grad_norm holds"),
        ([1, 2, 3], [1, -2, 3], "smoothness holds"),
        ([1, 2, 3], [1, np.inf, 3], "smoothness holds"),
        ([2, 2, 2], [1, 2, 3], "one gradient norm"),
        ([2], [1], "one gradient norm"),
        ([0, 0], [1, 2], "one gradient norm"),
    ],
)
def test_arrays_that_are_no_cloud_are_refused(x, y, words):
    for line in (fit.trend, fit.quantile, fit.envelope):
        with pytest.raises(ValueError, match=words):
            line(x, y)


@pytest.mark.parametrize("q", [0, 1, -0.1, 1.5, float("nan")])
def test_q_must_be_a_share(q):
    with pytest.raises(ValueError, match="q="):
        fit.quantile([1, 2], [1, 2], q)
    with pytest.raises(ValueError, match="q="):
        fit.estimate(made_cloud(), q=q)


def made_cloud(groups=3, n=50, seed=0, by="module"):
    generator = np.random.default_rng(seed)
    x = np.exp(generator.normal(0, 1, (n, groups)))
    y = (1 + 2 * x) * np.exp(generator.normal(0, 0.3, (n, groups)))
    return Cloud(
        by=by,
        groups=tuple(f"group {i}" for i in range(groups)),
        steps=np.arange(n),
        smoothness=y,
        grad_norm=x,
        status=np.full(n, int(Status.MEASURED), dtype=np.uint8),
        loss=np.linspace(3, 1, n),
        lr=np.full(n, 0.1),
    )


def test_estimates_are_those_of_each_group_alone():
    cloud = made_cloud(groups=7, n=41)
    # Groups with different numbers of usable points, one with ties.
    cloud.smoothness[:13, 2] = np.nan
    cloud.grad_norm[5, 3] = np.inf
    cloud.grad_norm[:, 4] = np.round(cloud.grad_norm[:, 4], 1)
    frame = fit.estimate(cloud, method=("trend", "quantile", "envelope"), q=0.9).set_index(["group", "method"])
    for column, group in enumerate(cloud.groups):
        chosen = cloud.usable[:, column]
        x, y = cloud.grad_norm[chosen, column], cloud.smoothness[chosen, column]
        lines = {"trend": fit.trend(x, y), "quantile": fit.quantile(x, y, 0.9), "envelope": fit.envelope(x, y)}
        for method, (level, slope) in lines.items():
            row = frame.loc[(group, method)]
            assert pytest.approx((level, slope), rel=1e-9, abs=1e-12) == (row.L0, row.L1)
            assert row.coverage == pytest.approx(np.mean(y <= level + slope * x + 1e-9))
            assert row.spearman == pytest.approx(spearmanr(x, y).statistic)
            assert row.points == chosen.sum()
            assert row.left_out == 41 - chosen.sum()
        assert frame.loc[(group, "envelope")].coverage == 1


def test_estimate_of_a_trace(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        for by in ("global", "module", "parameter", "coordinate", r"(encoder|decoder)"):
            frame = lsmooth.estimate(trace, by)
            cloud = trace.cloud(by)
            assert frame.group.drop_duplicates().tolist() == list(cloud.groups)
            assert frame.method.tolist() == ["trend", "envelope"] * len(cloud.groups)
            pd.testing.assert_frame_equal(frame, lsmooth.estimate(cloud))
        layer = lsmooth.estimate(trace, "module", method="envelope")
        whole = lsmooth.estimate(trace, "module", method="envelope", displacement="global")
        assert not np.allclose(layer.L1, whole.L1)


def test_too_few_points_or_one_gradient_norm_give_the_reason_and_no_number():
    cloud = made_cloud(groups=5, n=30)
    cloud.smoothness[9:, 0] = np.nan
    cloud.smoothness[10:, 1] = np.nan
    cloud.grad_norm[:, 2] = 0.7
    cloud.smoothness[:, 3] = np.nan
    frame = fit.estimate(cloud, method="trend").set_index("group")
    assert frame.L0.isna().tolist() == [True, False, True, True, False]
    assert frame.spearman.isna().tolist() == [True, False, True, True, False]
    assert frame.reason.tolist() == [
        "9 usable points, 10 are needed; left out: 21 did not move",
        "left out: 20 did not move",
        "all points lie at one gradient norm",
        "0 usable points, 10 are needed; left out: 30 did not move",
        "",
    ]


def test_flagged_steps_are_left_out_with_the_reason():
    cloud = made_cloud(groups=1, n=30)
    cloud.status[3] = Status.NO_DISPLACEMENT
    cloud.status[[5, 6]] = Status.NON_FINITE
    cloud.smoothness[[3, 5, 6]] = 1e9
    row = fit.estimate(cloud, method="envelope").iloc[0]
    assert (row.points, row.left_out) == (27, 3)
    assert row.reason == "left out: 1 no displacement, 2 non finite"
    assert row.L0 + row.L1 * 30 < 1e3


def test_an_unknown_method_is_refused():
    with pytest.raises(lsmooth.LsmoothError, match="did you mean envelope"):
        fit.estimate(made_cloud(), method="envelop")
