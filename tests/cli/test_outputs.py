"""Where a command writes: no file is lost unasked, and nothing but a regular file is ever replaced."""

import os

import pytest
from click.testing import CliRunner

from lsmooth.cli import main
from lsmooth.cli.outputs import check_output, refusal
from lsmooth.errors import InvalidArgumentError


@pytest.fixture
def places(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "force", "words"),
    [
        ("new", False, None),
        ("new", True, None),
        ("file", False, "exists already; choose another name, or --force to replace it."),
        ("file", True, None),
        ("folder", True, "is a folder"),
        ("pipe", True, "is not a regular file, and is never replaced"),
        ("link", True, "is not a regular file, and is never replaced"),
        ("nowhere/new", True, "There is no folder"),
    ],
)
def test_what_may_be_written(places, name, force, words):
    reason = refusal(places / name, force)
    assert (reason is None) == (words is None)
    if words is None:
        check_output(places / name, force)
    else:
        assert words in reason
        with pytest.raises(InvalidArgumentError, match=words):
            check_output(places / name, force)


TINY = ["transformer-encoder", "--steps=2", "--set=embedding=8", "--set=heads=1", "--set=feed_forward=8"]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["train", *TINY, "--trace=run.h5"], "run.h5"),
        (["train", *TINY, "--trace=run.h5"], "run.h5.checkpoint.pt"),
        (["demo", "--steps=2"], "demo.h5"),
        (["demo", "--steps=2"], "figure3.png"),
        (["compare", *TINY, "-o", "r.h5"], "r.h5"),
        (["compare", *TINY, "-o", "r.h5"], "r.png"),
        (["compare", "lower-bound", "-o", "r.csv"], "r.csv"),
        (["export", "TRACE", "-o", "table.csv"], "table.csv"),
        (["plot", "TRACE", "-o", "figure.png"], "figure.png"),
    ],
)
def test_force_replaces_regular_files_only(small_trace, tmp_path, monkeypatch, arguments, written):
    """Root has the permission to replace a device such as /dev/sda; the command must not."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(written)
    arguments = [str(small_trace) if text == "TRACE" else text for text in arguments]
    done = CliRunner().invoke(main, [*arguments, "--force"])
    assert done.exit_code == 1, done.output
    assert done.stderr == f"Error: {written} is not a regular file, and is never replaced; choose another name.\n"
    assert [item.name for item in tmp_path.iterdir()] == [written]
    assert not (tmp_path / written).is_file()
