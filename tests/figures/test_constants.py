"""L0 and L1 by layer."""

import numpy as np
import pandas as pd
import pytest
from drawing import empty_axes, frame, legend_texts, line, texts_overlap
from matplotlib.figure import Figure

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import constants_panels, layer_constants, style


def estimates(layers=6, methods=("trend", "envelope"), name="layers.{}.linear"):
    generator = np.random.default_rng(0)
    rows = []
    for method in methods:
        for layer in range(layers):
            l0, l1 = np.exp(generator.normal(size=2))
            rows.append(
                {"group": name.format(layer), "method": method, "L0": l0, "L0_low": 0.7 * l0, "L0_high": 1.4 * l0}
                | {"L1": l1, "L1_low": 0.6 * l1, "L1_high": 1.5 * l1, "reason": ""}
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("constant", ["L0", "L1"])
def test_every_estimate_and_interval_stands_in_its_layers_row(constant):
    table = estimates()
    ax = layer_constants(table, constant=constant, ax=empty_axes())
    assert [text.get_text() for text in ax.get_yticklabels()] == [f"layers.{k}.linear" for k in range(6)]
    assert legend_texts(ax) == ["trend", "envelope"]
    for place, method in enumerate(("trend", "envelope")):
        mine = table[table["method"] == method]
        x, rows = line(ax, method)
        np.testing.assert_array_equal(x, mine[constant])
        np.testing.assert_array_equal(np.round(rows), range(6))
        ends = np.array(ax.collections[place].get_segments())[:, :, 0]
        np.testing.assert_allclose(ends, mine[[f"{constant}_low", f"{constant}_high"]])


def test_zero_is_an_arrow_at_the_edge_and_no_estimate_an_empty_row():
    table = estimates(methods=("trend",))
    table.loc[1, ["L1", "L1_low"]] = 0.0
    table.loc[4, ["L0", "L1", "L0_low", "L0_high", "L1_low", "L1_high"]] = np.nan
    ax = layer_constants(table, constant="L1", ax=empty_axes())
    np.testing.assert_array_equal(line(ax, "trend")[1], [0, 2, 3, 5])
    x, rows = line(ax, "_zero")
    assert (x.tolist(), rows.tolist()) == ([ax.get_xlim()[0]], [1])
    assert ax.get_xlim()[0] > 0
    assert ax.get_legend() is None
    ax = layer_constants(table, constant="L1", ax=empty_axes(), linear=True)
    np.testing.assert_array_equal(line(ax, "trend")[1], [0, 1, 2, 3, 5])


@pytest.mark.parametrize("layers", [1, 12, 150])
def test_panels_are_legible(layers):
    table = estimates(layers, name="transformer.encoder.layers.{}.self_attention.query_key_value_projection")
    with style():
        axes = constants_panels(table, figure=Figure((3.25, 5), layout="constrained"))
    for ax in axes:
        assert texts_overlap(ax) == []
        assert ax.get_position().width > 0.15
    assert [ax.get_xlabel() for ax in axes] == ["$L_0$", "$L_1$"]
    assert not axes[1].yaxis.get_tick_params()["labelleft"]


def test_the_last_part_of_a_transformers_names_stands_whole_beside_two_panels():
    table = estimates(2, name="transformer.decoder.layers.{}.multihead_attn")
    with style():
        axes = constants_panels(table, figure=Figure((3.25, 3), layout="constrained"))
    assert [text.get_text() for text in axes[0].get_yticklabels()] == [f"t.d.l.{k}.multihead_attn" for k in range(2)]


def test_what_cannot_be_drawn_is_one_sentence():
    with pytest.raises(InvalidArgumentError, match="no column 'L0'"):
        layer_constants(frame().assign(group="a"), ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="neither 'L0' nor 'L1'"):
        layer_constants(estimates(), constant="L2", ax=empty_axes())
    nothing = estimates().assign(L0=np.nan, L1=np.nan, reason="fewer than 10 usable points")
    with pytest.raises(InvalidArgumentError, match=r"No layer has an estimate \(fewer than 10 usable points\)"):
        layer_constants(nothing, ax=empty_axes())
