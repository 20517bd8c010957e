"""The estimates as functions of arrays: closed forms, and loops over every entry."""

import math

import numpy as np
import pytest

from lsmooth.estimators import coordinate_lipschitz, joined_norms, local_lipschitz, rounding_lines, rounding_noise

GAMMAS = np.array([0.25, 0.5, 1.0])


@pytest.mark.parametrize("scale", [1.0, 1e-180, 1e180])
@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0, 2], [1]], [[2], [0], [1]]])
@pytest.mark.parametrize("join", ["l2", "sum", "max"])
def test_norms_of_groups_are_those_of_their_tensors_together(join, groups, scale):
    norms = np.random.default_rng(0).exponential(size=(4, 2, 3)) * scale
    kept = norms.copy()
    found = joined_norms(norms, groups, join)
    together = {"l2": lambda values: math.hypot(*values), "sum": math.fsum, "max": max}[join]
    for place in np.ndindex(4, 2):
        for column, group in enumerate(groups):
            assert found[(*place, column)] == pytest.approx(together([norms[(*place, k)] for k in group]), rel=1e-14)
    np.testing.assert_array_equal(norms, kept)


def test_a_quadratic_has_its_curvature_at_every_point():
    curvature, step = np.array([2.0, 0.5]), np.array([[0.1, 3.0], [1e-9, 7.0]])
    grad_diff = curvature * GAMMAS[None, :, None] * step[:, None, :]
    np.testing.assert_allclose(local_lipschitz(grad_diff, step, GAMMAS), np.broadcast_to(curvature, (2, 2)), rtol=1e-15)
    found, _ = coordinate_lipschitz(np.zeros((2, 2)), -grad_diff, -step, GAMMAS)
    np.testing.assert_allclose(found, np.broadcast_to(curvature, (2, 2)), rtol=1e-15)


def test_the_largest_ratio_counts_and_the_smaller_gradient_at_its_place():
    generator = np.random.default_rng(1)
    grad, displacement = generator.normal(size=(2, 5, 4))
    along = generator.normal(size=(5, 3, 4))
    found, smaller = coordinate_lipschitz(grad, along, displacement, GAMMAS)
    whole = local_lipschitz(np.abs(along - grad[:, None]), np.abs(displacement), GAMMAS)
    for row, column in np.ndindex(5, 4):
        ratios = [
            abs(along[row, k, column] - grad[row, column]) / (gamma * abs(displacement[row, column]))
            for k, gamma in enumerate(GAMMAS)
        ]
        best = int(np.argmax(ratios))
        assert found[row, column] == pytest.approx(ratios[best], rel=1e-14)
        assert whole[row, column] == pytest.approx(ratios[best], rel=1e-14)
        assert smaller[row, column] == min(abs(grad[row, column]), abs(along[row, best, column]))
    at_the_end, smaller = coordinate_lipschitz(grad, along[:, 2:], displacement, GAMMAS[2:])
    np.testing.assert_allclose(at_the_end, np.abs(along[:, 2] - grad) / np.abs(displacement), rtol=1e-15)
    np.testing.assert_array_equal(smaller, np.minimum(np.abs(grad), np.abs(along[:, 2])))


def test_what_did_not_move_and_what_is_no_number_has_no_estimate():
    step = np.array([[0.0, 1.0, 1.0]])
    grad_diff = np.ones((1, 3, 3))
    grad_diff[0, 1, 2] = np.nan
    found = local_lipschitz(grad_diff, step, GAMMAS)
    np.testing.assert_array_equal(found, [[np.nan, 4.0, np.nan]])
    by_coordinate, _ = coordinate_lipschitz(np.zeros((1, 3)), grad_diff, step, GAMMAS)
    np.testing.assert_array_equal(by_coordinate, found)


SEGMENTS = [np.arange(1, 6) / 6, np.array([0.1, 0.25, 0.5, 0.75, 1.0]), np.array([0.2, 0.4, 0.6, 0.8])]


def noise_of(changes, gammas, largest=math.inf):
    """Return the rounding in changes of gradient along a segment, (g, n), of n coordinates."""
    norms = np.linalg.norm(changes, axis=1)
    return float(rounding_noise(norms[None, :, None], gammas, np.array([[largest]]))[0, 0])


@pytest.mark.parametrize("gammas", SEGMENTS)
def test_rounding_is_told_from_smooth_changes(gammas):
    generator = np.random.default_rng(0)
    n = 200_000
    rounding = generator.normal(0, 0.3, (len(gammas), n)) - generator.normal(0, 0.3, n)
    expected = 0.3 * math.sqrt(2 * n)
    assert noise_of(rounding, gammas) == pytest.approx(expected, rel=0.02)
    linear, bent = (generator.normal(size=n) * gammas[:, None] ** power for power in (1, 2))
    # What grows like gamma has none, up to rounding of its own.
    assert noise_of(linear, gammas) < 1e-6 * np.linalg.norm(linear[0])
    # A tenth of the curvature lost, or won, along the segment: far below what spoils the estimate.
    for curved in (linear + 0.1 * bent, linear - 0.1 * bent, linear * (1 - 0.1 * gammas[:, None])):
        norms = np.linalg.norm(curved, axis=1)
        assert noise_of(curved, gammas) < 0.1 * norms[np.argmax(norms / gammas)]
    assert noise_of(rounding + 0.1 * linear + 0.01 * bent, gammas) == pytest.approx(expected, rel=0.03)
    assert noise_of(rounding + 3 * linear, gammas) == pytest.approx(expected, rel=0.3)


def test_rounding_that_comes_in_jumps_is_seen_in_what_scatters():
    gammas = SEGMENTS[0]
    jump = np.zeros((5, 10))
    jump[3:] = 1
    assert noise_of(jump, gammas) > 0.3 * np.linalg.norm(jump[3])
    smooth = np.outer(gammas, np.full(10, 0.5))
    assert noise_of(smooth + jump, gammas) > 0.3 * np.linalg.norm((smooth + jump)[3])


def test_kinks_look_like_rounding_up_to_what_arithmetic_can_do():
    gammas = SEGMENTS[0]
    steps = np.random.default_rng(0).normal(0, math.sqrt(1 / 6), (5, 100_000))
    walk = np.cumsum(steps, axis=0)
    assert 0.7 < noise_of(walk, gammas) / np.linalg.norm(walk[0]) < 1
    assert noise_of(walk, gammas, largest=1e-3) == 1e-3


def test_the_fit_is_least_squares_of_relative_errors():
    gammas = SEGMENTS[1]
    squares = np.random.default_rng(1).exponential(size=5)
    powers = np.stack([np.ones(5), gammas**2, gammas**3, gammas**4], axis=1)
    few, more = (
        np.linalg.lstsq(powers[:, :count] / gammas[:, None], squares / gammas, rcond=None)[0] for count in (3, 4)
    )
    expected = [few[0], more[0], *((squares - powers[:, :3] @ few) / gammas)]
    np.testing.assert_allclose(rounding_lines(gammas) @ squares, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_rounding_scales_and_takes_each_group_by_itself(scale):
    gammas = SEGMENTS[0]
    norms = np.random.default_rng(2).exponential(size=(3, 5, 4))
    norms[1, :, 2], norms[2, 3, 1] = 0, np.nan
    found = rounding_noise(scale * norms, gammas, np.full((3, 4), math.inf)) / scale
    for t, group in np.ndindex(3, 4):
        lines = rounding_lines(gammas) @ norms[t, :, group] ** 2
        gamma = max(zip(norms[t, :, group] / gammas, gammas, strict=True))[1]
        expected = math.sqrt(max(min(lines[:2]), gamma * math.sqrt(np.mean(lines[2:] ** 2))))
        np.testing.assert_allclose(found[t, group], expected, rtol=1e-9)
    assert found[1, 2] == 0
    assert np.isnan(found[2, 1])


def test_three_points_are_too_few_to_see_rounding():
    assert np.isnan(rounding_lines(np.array([0.25, 0.5, 0.75]))).all()
    assert np.isnan(rounding_noise(np.ones((2, 3, 4)), np.array([0.25, 0.5, 0.75]), np.ones((2, 4)))).all()
