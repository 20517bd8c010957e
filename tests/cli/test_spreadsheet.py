"""CSV in which a spreadsheet finds no formula, and all else is as it was."""

import io

import pandas as pd

from lsmooth.cli.spreadsheet import to_csv

FORMULAS = ["=cmd|'/c calc'!A1", "+1+1", "-2+3", "@SUM(A1)", "\tx", "\r=1"]


def test_texts_like_formulas_are_disarmed_and_all_else_stays():
    frame = pd.DataFrame({"group": [*FORMULAS, "layers.0", "-"], "=x": [-1.5, 2, 0, 1, 2, 3, 4, float("nan")]})
    lines = to_csv(frame).splitlines()
    assert lines[0] == "group,'=x"
    read = pd.read_csv(io.StringIO(to_csv(frame)))
    assert read["group"].tolist()[-2:] == ["layers.0", "'-"]
    assert read["'=x"].tolist()[:2] == [-1.5, 2]
    assert not [
        cell for line in to_csv(frame).split("\n") for cell in line.split(",")[:1] if cell.startswith(("=", "@"))
    ]
