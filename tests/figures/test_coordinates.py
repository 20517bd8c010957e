"""Figure 3: which coordinates are drawn, and with which definition of smoothness."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.figures import coordinate_grid
from lsmooth.trace.grouping import module_of


def points(ax):
    return np.asarray(ax.collections[0].get_offsets())


def titles(axes):
    return [ax.get_title(loc="right").replace("\n", "") for ax in axes]


def test_panels_come_from_different_layers_in_the_networks_order(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        axes = coordinate_grid(trace, figure=Figure((6, 5), layout="constrained"), panels=4)
        names = titles(axes)
        layers = [module_of(name.partition("[")[0]) for name in names]
        assert len(set(layers)) == 4
        places = [trace.coordinate_names.index(name) for name in names]
        assert places == sorted(places)


@pytest.mark.parametrize("endpoint", [None, True, False])
def test_each_definition_is_the_traces_own(small_trace, endpoint):
    with lsmooth.Trace(small_trace) as trace:
        name = next(name for name in trace.coordinate_names if name.startswith("decoder.weight"))
        cloud = trace.cloud("coordinate", endpoint=endpoint is not False)
        (ax,) = coordinate_grid(trace, coordinates=[name], endpoint=endpoint, figure=Figure((6, 5)))
    place = cloud.groups.index(name)
    good = cloud.usable[:, place] & (cloud.smoothness[:, place] > 0) & (cloud.grad_norm[:, place] > 0)
    expected = np.column_stack([cloud.grad_norm[good, place], cloud.smoothness[good, place]])
    np.testing.assert_array_equal(np.sort(points(ax), axis=0), np.sort(expected, axis=0))
    label = ax.figure.get_supxlabel()
    assert ("x_{t+1}" in label) == (endpoint is not False)


def test_an_unknown_coordinate_names_the_close_one(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        name = trace.coordinate_names[-1]
        with pytest.raises(InvalidArgumentError, match="did you mean") as raised:
            coordinate_grid(trace, coordinates=[name.replace("decoder", "decodr")])
    assert name in str(raised.value)


def test_a_trace_without_coordinates_says_so(tmp_path):
    from small_trace import write_small_trace

    path = write_small_trace(tmp_path / "none.h5", steps=3, coordinates=0)
    with pytest.raises(TraceError, match="follows no coordinates"):
        coordinate_grid(path)


def test_more_panels_than_layers_takes_more_coordinates_of_each(small_trace):
    axes = coordinate_grid(small_trace, panels=20, columns=4, figure=Figure((12, 10), layout="constrained"))
    names = titles(axes)
    assert len(names) == len(set(names)) == 20


def test_coordinates_with_few_points_come_last():
    def frame(panels, **counts):
        steps = [np.arange(count) for count in counts.values()]
        data = pd.DataFrame(
            {
                "step": np.concatenate(steps),
                "group": np.repeat([f"{name}.weight[0, 0]" for name in counts], list(counts.values())),
                "smoothness": 2.0,
                "grad_norm": 1.0 + np.concatenate(steps),
            }
        )
        return [name.partition(".")[0] for name in titles(coordinate_grid(data, panels=panels, figure=Figure((6, 5))))]

    assert frame(2, embedding=8, first=90, second=80, last=45) == ["first", "last"]
    assert frame(4, embedding=8, first=90, second=80, last=45) == ["embedding", "first", "second", "last"]
    assert frame(4, embedding=0, first=90, second=80, last=45) == ["first", "second", "last"]
    assert frame(3, embedding=44, first=90, second=80, last=45) == ["first", "second", "last"]


def test_a_coordinate_that_never_moved_well_has_no_panel():
    data = pd.DataFrame(
        {
            "step": np.tile(np.arange(10), 2),
            "group": np.repeat(["stuck.weight[0]", "moved.weight[0]"], 10),
            "smoothness": 2.0,
            "grad_norm": np.tile(1.0 + np.arange(10), 2),
            "usable": np.repeat([False, True], 10),
        }
    )
    assert titles(coordinate_grid(data, figure=Figure((6, 5)))) == ["moved.weight[0]"]
    assert titles(coordinate_grid(data[:10], figure=Figure((6, 5)))) == ["stuck.weight[0]10 flagged"]


def test_a_run_of_which_half_is_not_finite_is_legible_at_its_own_size(tmp_path):
    from made_up import made_up

    from lsmooth.figures.kinds import Options, draw_kind
    from lsmooth.figures.rendering import empty_figure, render

    def half(rows):
        rows["coordinate/grad"][::2] = np.nan

    with lsmooth.Trace(made_up(tmp_path / "run.h5", steps=20, spoil=half)) as trace, lsmooth.figures.style():
        figure = draw_kind("coordinates", [trace], empty_figure(), Options())
        assert "10 not shown" in figure.axes[0].get_title(loc="right")
        assert render(figure, ".png")
