"""The estimates as functions of arrays: closed forms, and loops over every entry."""

import math

import numpy as np
import pytest

from lsmooth.estimators import coordinate_lipschitz, joined_norms, local_lipschitz

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
