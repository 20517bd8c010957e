"""`lsmooth plot`: which file it writes, and what it refuses."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from lsmooth.cli import main

MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


def plot(*arguments):
    return CliRunner().invoke(main, ["plot", *map(str, arguments)])


@pytest.mark.parametrize("suffix", MAGIC)
@pytest.mark.parametrize("kind", ["scatter", "coordinates"])
def test_the_suffix_says_the_format(small_trace, tmp_path, suffix, kind):
    path = tmp_path / f"figure{suffix}"
    done = plot(small_trace, "-o", path, "--kind", kind)
    assert done.exit_code == 0, done.output
    assert str(path) in done.output
    assert path.read_bytes().startswith(MAGIC[suffix])


def refused(done, *words):
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert len(done.output.splitlines()) == 1
    for word in words:
        assert word in done.output


def test_an_existing_file_is_replaced_by_force_alone(small_trace, tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("mine")
    refused(plot(small_trace, "-o", path), str(path), "--force")
    assert path.read_text() == "mine"
    assert plot(small_trace, "-o", path, "--force").exit_code == 0
    assert path.read_bytes().startswith(MAGIC[".png"])


def test_unknown_kinds_and_suffixes_name_the_close_ones(small_trace, tmp_path):
    refused(plot(small_trace, "-o", tmp_path / "a.png", "--kind", "scater"), "did you mean scatter?")
    refused(plot(small_trace, "-o", tmp_path / "a.pgn"), ".png")
    refused(plot(small_trace, "-o", tmp_path / "a"), "no suffix")
    refused(plot(small_trace, "-o", tmp_path / "nowhere" / "a.png"), "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_drawn_leaves_no_file(tmp_path):
    from small_trace import write_small_trace

    trace = write_small_trace(tmp_path / "run.h5", steps=2, coordinates=0)
    refused(plot(trace, "-o", tmp_path / "a.png", "--kind", "coordinates"), "follows no coordinates")
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_plot_never_imports_torch(small_trace, tmp_path):
    script = (
        "import sys; from lsmooth.cli import main\n"
        f"main(['plot', {str(small_trace)!r}, '-o', {str(tmp_path / 'a.png')!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'seaborn', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
