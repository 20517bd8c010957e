"""Long names fit."""

import pytest
from drawing import empty_axes

from lsmooth.figures import style
from lsmooth.figures.labels import abbreviate, math_width, shorten, text_width, title, wrap_label, wrap_name

LONG = "transformer.encoder.layers.11.self_attn.in_proj_weight_with_a_long_name[1023, 767]"


@pytest.mark.parametrize("width", [40, 80, 120, 1000])
@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize("name", [LONG, "w[3]", "weight", "a" * 200, "layers.0.weight[]"])
def test_a_name_fits_and_keeps_its_end(name, width, lines):
    rows = wrap_name(name, width, 8, lines).split("\n")
    assert len(rows) <= lines
    assert all(text_width(row, 8) <= width for row in rows)
    assert rows[-1].endswith(name[-2:])


def test_numbers_of_layers_survive():
    names = [f"transformer.encoder.layers.{k}.self_attention.query_key_value_projection" for k in range(30)]
    short = [abbreviate(name, 90, 8) for name in names]
    assert len(set(short)) == 30
    assert all(text_width(name, 8) <= 90 for name in short)
    assert abbreviate("encoder.layers.3.linear1", 90, 8) == "e.layers.3.linear1"
    assert abbreviate("encoder.linear1.weight[12, 2]", 72, 8) == "e.l1.weight[12, 2]"
    assert abbreviate("resnet.layer10.3x.conv2d.12.weight", 76, 8) == "r.l10.3.c.12.weight"


def test_what_fits_stays_whole():
    assert wrap_name("layers.0.weight[3, 17]", 500, 8) == "layers.0.weight[3, 17]"
    assert wrap_name(LONG, 190, 8, 3).replace("\n", "") == LONG
    assert shorten("weight", 100, 8) == "weight"


@pytest.mark.parametrize(("width", "form"), [(500, 0), (110, 0), (90, 1), (60, 2), (5, 2)])
def test_lines_below_a_title_take_the_first_form_that_fits(width, form):
    forms = ("envelope $L_0$ 12.8, $L_1$ 2.48", "envelope $L_0$ 13, $L_1$ 2", "envelope $L_0$ 12.8,\n$L_1$ 2.48")
    with style():
        ax = empty_axes()
        title(ax, "", width, below=[forms])
        ax.figure.draw_without_rendering()
    assert ax.get_title() == forms[form]
    if width > 5:
        assert ax.title.get_window_extent().width / ax.figure.dpi * 72 < width + 15 * (form == 2)


@pytest.mark.parametrize("width", [60, 80, 110, 170, 1000])
@pytest.mark.parametrize(
    "label",
    [
        r"envelope: $L_0$ = $1.23\!\times\!10^{-5}$, $L_1$ = $4.56\!\times\!10^{7}$ (leaves it)",
        "no line: all points lie at one gradient norm",
        r"a_run_with_a_long_name_that_costs_\$5_and_has_no_space (3 of 4 diverged)",
    ],
)
def test_a_label_is_broken_between_words_but_not_within_a_constant(label, width):
    rows = wrap_label(label, width, 8).split("\n")
    assert all(math_width(row, 8) <= max(width, 80) for row in rows)
    if width >= 300:
        assert rows == [label]
    elif "…" not in "".join(rows):
        assert " ".join(rows) == label
    assert all(not row.endswith("=") and row.count("(") == row.count(")") for row in rows)
    assert "".join(rows).replace(r"\$", "").count("$") % 2 == 0


def test_a_line_does_not_break_within_mathematics():
    ratio = r"$\langle\Delta(1), d\rangle / {-\langle g, d\rangle}$"
    assert wrap_label(f"edge ratio {ratio}", 40, 8) == f"edge\nratio\n{ratio}"
    assert wrap_label(r"costs \$5 or so", 20, 8).split("\n")[1:] == [r"\$5", "or so"]
