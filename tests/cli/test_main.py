"""The command as a whole: version, help, and errors that end in one sentence."""

import pytest
from click.testing import CliRunner

import lsmooth
from lsmooth.cli import COMMANDS, main


@pytest.fixture
def run():
    def call(*arguments):
        return CliRunner().invoke(main, list(arguments))

    return call


def test_version(run):
    assert run("--version").output == f"lsmooth, version {lsmooth.__version__}\n"


def test_help_names_every_command(run):
    output = run("--help").output
    for name in COMMANDS:
        assert name in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run, name):
    done = run(name, "--help")
    assert done.exit_code == 0
    assert f"Example: lsmooth {name}" in done.output


def test_unknown_command_names_the_close_one(run):
    done = run("inof")
    assert done.exit_code == 2
    assert "did you mean info?" in done.output


@pytest.mark.parametrize("kind", ["missing", "empty", "foreign", "folder"])
def test_a_file_that_is_no_trace_ends_in_one_sentence(run, tmp_path, kind):
    path = tmp_path / "run.h5"
    if kind == "empty":
        path.touch()
    elif kind == "foreign":
        path.write_text("step,loss\n")
    elif kind == "folder":
        path.mkdir()
    done = run("info", str(path))
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert str(path) in done.output
    assert len(done.output.splitlines()) == 1
