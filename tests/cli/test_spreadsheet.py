"""CSV in which a spreadsheet finds no formula, and all else is as it was."""

import io

import pandas as pd
import pytest
from click.testing import CliRunner
from rows import header, rows

from lsmooth.cli import main
from lsmooth.cli.spreadsheet import to_csv
from lsmooth.trace.writer import TraceWriter

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


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_name_is_a_formula_in_an_exported_table(tmp_path, start):
    name = f'{start}HYPERLINK("http://x")'
    made = header(parameters=(name, "plain.weight"), coordinates=0)
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, 3))
    writer.close()
    output = tmp_path / "out.csv"
    done = CliRunner().invoke(main, ["export", str(tmp_path / "run.h5"), "-o", str(output), "--by", "parameter"])
    assert done.exit_code == 0, done.output
    lines = output.read_text().splitlines()[1:]
    cells = [line.split(",")[1].strip('"') for line in lines]
    assert cells[1::2] == ["plain.weight"] * 3
    assert {cell[0] for cell in cells[::2]} <= {"'", "\\"}
