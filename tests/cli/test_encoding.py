"""Output that is not UTF-8: every command prints, with replacements, and never ends in a traceback."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from made_up import made_up, smooth_run

from lsmooth.cli import main
from lsmooth.cli.encoding import _REPLACEMENTS


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Return a trace whose parameters have names in Chinese and with accents."""
    return made_up(tmp_path_factory.mktemp("run") / "été.h5", steps=40, name="层.{}.façade", spoil=smooth_run)


COMMANDS = [
    ["tail", "TRACE", "--no-follow", "-n", "3"],
    ["info", "TRACE"],
    ["info", "TRACE", "--json"],
    ["estimate", "TRACE", "--by", "parameter"],
    ["estimate", "TRACE", "--by", "parameter", "--compare"],
    ["estimate", "TRACE", "--by", "parameter", "--json"],
    ["estimate", "TRACE", "--by", "parameter", "--csv"],
    ["advise", "TRACE"],
    ["export", "TRACE", "-o", "é.csv"],
    ["plot", "TRACE", "-o", "é.png"],
    ["tasks"],
    ["info", "层.h5"],
    ["--help"],
    ["compare", "--help"],
]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift-jis", "utf-8"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_prints_in_any_encoding(trace, tmp_path, monkeypatch, arguments, encoding):
    monkeypatch.chdir(tmp_path)
    command = [str(trace) if text == "TRACE" else text for text in arguments]
    done = CliRunner(charset=encoding).invoke(main, command)
    assert done.exit_code == (1 if "层.h5" in arguments else 0), done.output
    assert isinstance(done.exception, SystemExit | None)
    assert done.output
    if "--json" in arguments:
        # JSON is written without characters beyond ASCII, so that no encoding changes a name.
        facts = json.loads(done.stdout)
        assert "parameter_tensors" in facts or facts["estimates"][0]["group"] == "层.0.façade"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_the_blocks_of_tail_are_replaced(trace, encoding):
    command = [sys.executable, "-m", "lsmooth.cli", "tail", str(trace), "--no-follow", "-n", "3"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    # click takes ASCII for a locale that is not set up, and prints UTF-8.
    unicode = encoding in ("ascii", "utf-8")
    said = done.stdout.decode("utf-8" if unicode else encoding)
    blocks = said.splitlines()[-1].split()[-1]
    assert len(blocks) == 16
    assert set(blocks) <= set("▁▂▃▄▅▆▇█" if unicode else "_.-=+*#@")
    assert not done.stderr


def test_replacements_are_ascii_and_blocks_stay_apart():
    assert "".join(_REPLACEMENTS.values()).isascii()
    blocks = [_REPLACEMENTS[block] for block in "▁▂▃▄▅▆▇█"]
    assert len(set(blocks)) == 8
    assert all(len(block) == 1 for block in blocks)


def test_a_name_that_no_encoding_holds_is_printed():
    """A file name with bytes that are not UTF-8 reaches Python as surrogates."""
    command = [os.fsencode(sys.executable), b"-m", b"lsmooth.cli", b"info", b"/nowhere/\xff.h5"]
    done = subprocess.run(command, env={**os.environ, "PYTHONUTF8": "1"}, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: ")
    assert rb"/nowhere/\udcff.h5" in done.stderr
