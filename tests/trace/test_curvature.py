"""Curvature of steps, from a trace's numbers: against NumPy on made-up rows."""

import numpy as np
import pytest
from rows import header, rows

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.trace.curvature import curvature, edge_ratios
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

COUNT = 40
GROUPS = {"embedding": [0], "layers.0": [1, 2], "head": [3]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("curvature") / "run.h5"
    numbers = rows(header(norms=("linf",)), 0, COUNT)
    numbers["curvature/slope"] *= -1
    writer = TraceWriter(path, header(norms=("linf",)))
    writer.append(numbers)
    writer.close()
    return Trace(path), numbers


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_by_module(made, norm):
    trace, numbers = made
    table = curvature(trace, "module", norm)
    assert list(table.group.cat.categories) == list(GROUPS)
    for column, (name, members) in enumerate(GROUPS.items()):
        mine = table[table.group == name]
        steps = numbers["step_norm" if norm == "l2" else "linf/step_norm"][:, members]
        moved = np.linalg.norm(steps, axis=1) if norm == "l2" else steps.max(axis=1)
        end = numbers["curvature/change_next"][:, members].sum(axis=1)
        slope = numbers["curvature/slope"][:, members].sum(axis=1)
        along = [
            numbers["curvature/change"][:, i, members].sum(axis=1) / g / moved**2 for i, g in enumerate((0.25, 0.5))
        ]
        gradients = numbers["grad_norm" if norm == "l2" else "linf/grad_norm"][:, members]
        dual = np.linalg.norm(gradients, axis=1) if norm == "l2" else gradients.sum(axis=1)
        np.testing.assert_allclose(mine.steepness, -slope / (dual * moved), rtol=1e-5)
        np.testing.assert_allclose(mine.edge_ratio, end / -slope, rtol=1e-5, err_msg=str(column))
        np.testing.assert_allclose(mine["directional_0.25"], along[0], rtol=1e-5)
        np.testing.assert_allclose(mine.directional, np.max([*along, end / moved**2], axis=0), rtol=1e-5)
        assert mine.usable.all()


def test_of_the_whole_network(made):
    trace, numbers = made
    expected = numbers["curvature/change_next"].sum(axis=1) / -numbers["slope"]
    np.testing.assert_allclose(edge_ratios(trace), expected, rtol=1e-5)
    np.testing.assert_allclose(edge_ratios(trace, slice(3, 7)), expected[3:7], rtol=1e-5)
    table = curvature(trace, "global", "l2")
    above = numbers["loss_next"] - numbers["loss"] - numbers["slope"]
    moved = np.linalg.norm(numbers["step_norm"], axis=1)
    np.testing.assert_allclose(table.loss_based, 2 * above / moved**2, rtol=1e-5)


def test_what_there_is_none_of_is_said(made, tmp_path):
    trace, _ = made
    with pytest.raises(InvalidArgumentError, match="not defined for curvature"):
        curvature(trace, "coordinate", "l2")
    older = header(format_version="1.1")
    writer = TraceWriter(tmp_path / "older.h5", older)
    writer.append(rows(older, 0, 3))
    writer.close()
    trace = Trace(tmp_path / "older.h5")
    with pytest.raises(TraceError, match="recorded before curvature was measured"):
        curvature(trace, "global", "l2")
    assert np.isnan(edge_ratios(trace)).all()
    assert len(edge_ratios(trace)) == 3
