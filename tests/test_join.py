"""How parts make the whole: ranks' rows and tensors of a group are joined by the same rule."""

import numpy as np
import pytest

from lsmooth.join import Join
from lsmooth.trace.layout import FIELDS, GEOMETRIES

WHOLE = np.array([3.0, -4.0, 12.0, 0.5, 7.0])
PARTS = (WHOLE[:2], WHOLE[2:])

NORMS = {
    "l2": lambda x: np.sqrt((x**2).sum()),
    "l1": lambda x: np.abs(x).sum(),
    "linf": lambda x: np.abs(x).max(),
}
JOINED = {Join.NORM: NORMS["l2"], Join.SUM: np.sum, Join.MAX: np.max}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_parts_make_the_norm_of_the_whole(norm):
    """Each geometry names the join that its norm obeys."""
    joins = {
        join
        for geometry in GEOMETRIES.values()
        for kind, join in [
            (geometry.displacement, geometry.displacement_join),
            (geometry.gradient, geometry.gradient_join),
        ]
        if kind == norm
    }
    assert len(joins) == 1
    parts = np.array([NORMS[norm](part) for part in PARTS])
    assert JOINED[joins.pop()](parts) == pytest.approx(NORMS[norm](WHOLE), rel=1e-14)


def test_nuclear_and_spectral_norms_of_block_matrices():
    geometry = GEOMETRIES["spectral"]
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(3, 2)), rng.normal(size=(2, 4))]
    whole = np.zeros((5, 6))
    whole[:3, :2], whole[3:, 2:] = blocks
    spectral = [np.linalg.norm(block, 2) for block in blocks]
    nuclear = [np.linalg.norm(block, "nuc") for block in blocks]
    assert JOINED[geometry.displacement_join](np.array(spectral)) == pytest.approx(np.linalg.norm(whole, 2))
    assert JOINED[geometry.gradient_join](np.array(nuclear)) == pytest.approx(np.linalg.norm(whole, "nuc"))


def test_every_dataset_says_how_it_is_joined():
    assert {type(field.join) for field in FIELDS} == {Join}
    joins = {field.name: field.join for field in FIELDS}
    assert (joins["loss"], joins["slope"], joins["grad_norm"]) == (Join.MEAN, Join.SUM, Join.NORM)
    assert (joins["step"], joins["lr"], joins["status"]) == (Join.SAME, Join.SAME, Join.SAME)
