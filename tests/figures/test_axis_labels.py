"""The labels of the axes of gradient norm and smoothness."""

from dataclasses import replace

import pytest

from lsmooth.figures import axis_labels
from lsmooth.figures.axis_labels import x_label, y_label
from lsmooth.figures.points import points_of
from lsmooth.trace.layout import GEOMETRIES
from lsmooth.trace.reader import Trace


@pytest.mark.parametrize("norm", GEOMETRIES)
def test_each_geometry_names_its_norms(norm):
    label = y_label(norm)
    assert label.startswith("local Lipschitz constant")
    assert GEOMETRIES[norm].label in label
    assert ("\n" in label) == (norm != "l2")


def test_the_norm_of_gradients_is_the_dual(small_trace):
    for norm, geometry in GEOMETRIES.items():
        points = replace(points_of(Trace(small_trace), "global")[0], norm=norm)
        assert x_label(points) == rf"gradient norm $\|\nabla f(x_t)\|{geometry.dual_symbol}$"
        assert x_label(replace(points, by="coordinate")) == axis_labels.BOTH_ENDS_LABEL
