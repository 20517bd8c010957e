"""`lsmooth advise`: the advice of `lsmooth.advice`, in the terminal's width and as JSON."""

import json

import pytest
from click.testing import CliRunner

import lsmooth
from lsmooth.advice import advise
from lsmooth.cli import main


@pytest.fixture
def run(small_trace):
    def call(*arguments, columns=80):
        done = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["advise", str(small_trace), *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


@pytest.fixture
def report(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        yield advise(trace)


def test_every_advice_is_printed_with_its_formula_and_source(run, report):
    words = " ".join(run().split())
    assert report.advice
    for item in report.advice:
        for text in (item.text, item.formula, f"[{item.source}]"):
            assert " ".join(text.split()) in words
    for name, reason in report.left_out.items():
        assert " ".join(f"Nothing about {name}: {reason}".split()) in words


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_fit_the_terminal_and_are_never_longer_than_can_be_read(run, columns):
    assert max(map(len, run(columns=columns).splitlines())) <= min(columns, 100)


def test_json_holds_the_same_without_infinity(run, report):
    facts = json.loads(run("--json"), parse_constant=pytest.fail)
    assert [item["text"] for item in facts["advice"]] == [item.text for item in report.advice]
    assert facts["left_out"] == dict(report.left_out)
