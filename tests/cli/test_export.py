"""`lsmooth export`: the files it writes, and CSV in which a spreadsheet finds no formula."""

import io

import pandas as pd
import pytest
from click.testing import CliRunner
from made_up import made_up

import lsmooth
from lsmooth.cli import main


def export(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".nc"])
@pytest.mark.parametrize("by", [None, "module"])
def test_it_says_what_it_wrote(small_trace, tmp_path, suffix, by):
    path = tmp_path / f"table{suffix}"
    done = export(small_trace, "-o", path, *(["--by", by] if by else []))
    assert done.exit_code == 0, done.output
    with lsmooth.Trace(small_trace) as trace:
        rows = len(trace) if by is None or suffix == ".nc" else len(trace.smoothness(by))
    assert done.output == f"Wrote {path} ({rows} rows).\n"
    assert path.exists()


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A1", "+1+1", "-2+3", "@SUM(A1)"])
def test_a_hostile_trace_runs_nothing_in_a_spreadsheet(tmp_path, name):
    path = made_up(tmp_path / "run.h5", name=name + "{}", steps=30)
    assert export(path, "-o", tmp_path / "table.csv", "--by", "parameter").exit_code == 0
    printed = CliRunner().invoke(main, ["estimate", str(path), "--by", "parameter", "--csv", "--confidence", "0"])
    assert printed.exit_code == 0
    for text in ((tmp_path / "table.csv").read_text(), printed.stdout):
        groups = pd.read_csv(io.StringIO(text))["group"]
        assert groups.str.startswith("'" + name).all()


def test_a_suffix_that_is_no_format(small_trace, tmp_path):
    done = export(small_trace, "-o", tmp_path / "table.xlsx")
    assert done.exit_code == 1
    assert "ends in none of .csv, .parquet and .nc" in done.stderr


def test_the_trace_is_not_replaced_by_its_table(small_trace, tmp_path):
    path = tmp_path / "run.nc"
    path.write_bytes(small_trace.read_bytes())
    done = export(path, "-o", path, "--force")
    assert done.exit_code == 1
    assert "is the trace itself" in done.stderr
