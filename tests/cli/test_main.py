"""The command as a whole: version, help, and errors that end in one sentence."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import lsmooth
from lsmooth.cli import COMMANDS, GROUPS, main
from lsmooth.cli.encoding import print_any_text
from lsmooth.cli.numbers import LARGEST_COUNT, SEED
from lsmooth.figures.kinds import KINDS


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


def test_the_page_of_commands_says_what_holds():
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"| `lsmooth {name}" in page
    assert f"at most {LARGEST_COUNT:,}" in page
    assert f"from 0 to {SEED.max:,}" in page
    print_any_text()
    assert "▁▂▃▄▅▆▇█".encode("ascii", "lsmooth.replace").decode() in page


def test_commands_stand_in_groups(run):
    lines = run("--help").output.splitlines()
    for title, commands in GROUPS.items():
        start = lines.index(f"{title}:") + 1
        names = [line.split()[0] for line in lines[start : start + len(commands)]]
        assert names == list(commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_is_wider_than_a_terminal_and_every_option_has_words(run, name):
    lines = run(name, "--help").output.splitlines()
    assert max(map(len, lines)) <= 80
    command = main.get_command(click.Context(main), name)
    for option in command.params:
        assert option.param_type_name == "argument" or option.help, option
    assert "None" not in "\n".join(lines)


def test_help_of_plot_lists_every_kind(run):
    listed = re.findall(r"^  ([a-z]+)  +\S", run("plot", "--help").output.partition("Options:")[0], re.MULTILINE)
    assert listed == list(KINDS)


def test_unknown_command_names_the_close_one(run):
    done = run("inof")
    assert done.exit_code == 2
    assert "did you mean info?" in done.output


@pytest.mark.parametrize("command", ["info", "estimate", "tail", "advise"])
def test_a_file_name_turns_no_terminal_upside_down(run, command):
    """A colleague may send a file of any name."""
    done = run(command, "run\x1b[2J\x07.h5")
    assert done.exit_code == 1
    assert "run\\x1b[2J\\x07.h5" in done.stderr
    assert "\x1b" not in done.output


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
