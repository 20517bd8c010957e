"""Every command's tables: columns line up, lines fit, names stay whole, and nothing is lost without need."""

import math

import pytest

from lsmooth.cli.table import Column, heads, intervals, line, listed, numbers, table, terminal_width, wrapped

COLUMNS = [
    Column("layer", left=True),
    Column("method", left=True),
    Column("L0"),
    Column("rank", dispensable=True),
    Column("points", dispensable=True),
]
NAME = "encoder.layers.0.self_attn.out_proj"
ROWS = [[NAME, "trend", "1.5", "0.9", "60"], [NAME, "envelope", "12.5", "0.9", "60"], ["decoder", "trend", "3", "", ""]]


def test_columns_line_up_and_a_name_is_said_once():
    assert table(COLUMNS, ROWS, 80) == [
        "layer                                method      L0  rank  points",
        "encoder.layers.0.self_attn.out_proj  trend      1.5   0.9      60",
        "                                     envelope  12.5   0.9      60",
        "decoder                              trend        3",
    ]


def test_the_table_is_as_narrow_as_its_widest_line():
    """One character less, and the names go to lines of their own."""
    assert len(table(COLUMNS, ROWS, 65)) == 4
    assert len(table(COLUMNS, ROWS, 64)) == 4 + 3


def test_long_names_stand_whole_on_lines_of_their_own_before_any_column_goes():
    assert table(COLUMNS, ROWS, 40) == [
        "layer",
        "  method      L0  rank  points",
        NAME,
        "  trend      1.5   0.9      60",
        "  envelope  12.5   0.9      60",
        "decoder",
        "  trend        3",
    ]


@pytest.mark.parametrize(("width", "kept"), [(30, "L0  rank  points"), (29, "L0  rank"), (21, "L0"), (5, "L0")])
def test_columns_that_can_be_done_without_go_one_by_one(width, kept):
    assert table(COLUMNS, ROWS, width)[1] == f"  method      {kept}"


def test_a_name_longer_than_a_line_is_broken_and_nothing_of_it_is_lost():
    lines = table(COLUMNS, ROWS, 30)
    start = lines.index("  method      L0  rank  points") + 1
    end = lines.index("  trend      1.5   0.9      60")
    assert "".join(text.strip() for text in lines[start:end]) == NAME
    assert max(map(len, lines)) <= 30


def test_decimal_points_stand_below_each_other():
    cells = numbers([0.000123, 1.5, 1234.0, math.nan, 22.0, 5e-7])
    lines = table([Column("", left=True), Column("x")], [[str(i), cell] for i, cell in enumerate(cells)], 80)
    assert [text.split()[-1] for text in lines[1:]] == ["0.000123", "1.5", "1.23e+03", "-", "22", "5e-07"]
    # The ones of all numbers are in one column.
    ones = {0: "0.", 1: "1.", 2: "1.", 4: "22", 5: "5e"}
    places = {lines[1 + row].index(text) + (text == "22") for row, text in ones.items()}
    assert len(places) == 1


def test_numbers_stand_closer_where_there_is_no_room():
    cells = [f"[{low}, {high}]" for low, high in zip(numbers([1.0, 0.001]), numbers([1.0, 100.0]), strict=True)]
    rows = list(zip("ab", cells, strict=True))
    assert table([Column("", left=True), Column("x", left=True)], rows, 80)[1:] == [
        "a  [1    ,   1]",
        "b  [0.001, 100]",
    ]
    assert table([Column("", left=True), Column("x", left=True)], rows, 13)[3::2] == ["  [1, 1]", "  [0.001, 100]"]


def test_means_and_their_intervals_stand_below_each_other():
    cells = intervals([(4.0351, 0.0671), (102.41, 15.7), (3.5, math.nan), (math.nan, math.nan), (1.5, 123456.0)])
    columns = [Column("optimizer", left=True), Column("test perplexity")]
    assert table(columns, [["abcde"[i], cell] for i, cell in enumerate(cells)], 80)[1:] == [
        "a           4.035 ± 0.067",
        "b           102.4 ± 16",
        "c             3.5",
        "d               -",
        "e             1.5 ± 120000",
    ]


def test_nothing_to_number():
    assert intervals([]) == []
    assert numbers([]) == []


def test_heads_of_several_lines_stand_on_the_bottom_one():
    columns = [Column("layer", left=True), Column("trend\nL0"), Column("points")]
    assert table(columns, [["a", "1", "22"]], 80) == [
        "       trend",
        "layer     L0  points",
        "a          1      22",
    ]


def test_lines_that_come_one_by_one_have_the_widths_of_their_columns():
    columns = [Column("step", width=6), Column("loss", width=8), Column("note", left=True)]
    assert heads(columns) == ["  step      loss  note"]
    assert line(columns, ["12", "0.5", "moved"]) == "    12       0.5  moved"


def test_facts_in_a_column():
    pairs = [("lr", "0.5"), ("a_name_that_is_longer_than_most", "x"), ("hyperparameters", "y")]
    assert listed(pairs) == [
        "  lr              0.5",
        "  a_name_that_is_longer_than_most x",
        "  hyperparameters y",
    ]


def test_sentences_are_wrapped_to_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert terminal_width() == 20
    assert wrapped("self-attention is a long-winded word") == ["self-attention is a", "  long-winded word"]
