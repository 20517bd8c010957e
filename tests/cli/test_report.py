"""`lsmooth report`: which file it writes, and what it refuses."""

import pytest
from click.testing import CliRunner

from lsmooth.cli import main

pytest.importorskip("bokeh")


def report(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_one_page_is_written_and_replaced_by_force_alone(small_trace, tmp_path):
    path = tmp_path / "run.html"
    done = report(small_trace, small_trace, "-o", path)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Wrote {path} (")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    refused = report(small_trace, "-o", path)
    assert refused.exit_code == 1
    assert "--force" in refused.output
    assert report(small_trace, "-o", path, "--force").exit_code == 0


def test_what_is_no_page_or_no_trace_is_one_sentence(small_trace, tmp_path):
    for arguments in ((small_trace, "-o", tmp_path / "run.pdf"), (tmp_path / "none.h5", "-o", tmp_path / "run.html")):
        done = report(*arguments)
        assert done.exit_code == 1
        assert len(done.output.splitlines()) == 1
    assert report(small_trace).exit_code == 2
    assert not list(tmp_path.iterdir())
