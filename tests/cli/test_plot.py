"""`lsmooth plot`: which file it writes, and what it refuses."""

import re
import struct
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from small_trace import write_small_trace

from lsmooth.cli import main
from lsmooth.figures.kinds import KINDS

MAGIC = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


def plot(*arguments):
    return CliRunner().invoke(main, ["plot", *map(str, arguments)])


@pytest.mark.parametrize("suffix", MAGIC)
def test_the_suffix_says_the_format(small_trace, tmp_path, suffix):
    path = tmp_path / f"figure{suffix}"
    done = plot(small_trace, "-o", path)
    assert done.exit_code == 0, done.output
    assert done.output == f"Wrote {path}.\n"
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
    refused(plot(small_trace, "-o", tmp_path / "a.png", "--kind", "scater"), "did you mean scatter")
    refused(plot(small_trace, "-o", tmp_path / "a.pgn"), ".png")
    refused(plot(small_trace, "-o", tmp_path / "a"), "no suffix")
    refused(plot(small_trace, "-o", tmp_path / "nowhere" / "a.png"), "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_drawn_leaves_no_file(tmp_path):
    trace = write_small_trace(tmp_path / "run.h5", steps=2, coordinates=0)
    refused(plot(trace, "-o", tmp_path / "a.png", "--kind", "coordinates"), "follows no coordinates")
    refused(plot(trace, "-o", tmp_path / "a.png", "--size", "0.6x0.6"), "too small", "--size")
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "density"])
def test_a_figure_of_one_column_is_large_enough_for_every_kind(kind, small_trace, tmp_path):
    done = plot(small_trace, "-o", tmp_path / "a.png", "--kind", kind, "--dpi", "50")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("kind", "inches"), [("scatter", "2x1.5"), ("scatter", "1.6x1.6"), ("stability", "3.25x0.8")])
def test_a_figure_whose_legend_would_stick_out_is_refused(kind, inches, small_trace, tmp_path):
    path = tmp_path / "a.png"
    refused(plot(small_trace, "-o", path, "--kind", kind, "--size", inches), "too small", "--size")
    assert not path.exists()


def size(path):
    """Width and height of a PNG in pixels."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_size_and_dots(small_trace, tmp_path):
    path = tmp_path / "a.png"
    assert plot(small_trace, "-o", path).exit_code == 0
    assert size(path) == (975, 780)
    assert plot(small_trace, "-o", path, "--force", "--size", "4x3", "--dpi", "100").exit_code == 0
    assert size(path) == (400, 300)
    for wrong in ("4", "4x", "axb", "0x3", "3x100"):
        done = plot(small_trace, "-o", path, "--force", "--size", wrong)
        assert done.exit_code == 2
        assert wrong in done.output


def words(path):
    """The text of an SVG, as readers of text find it."""
    return re.sub(r"<[^>]*>", " ", path.read_text())


@pytest.fixture
def readable(tmp_path):
    """A style that keeps letters in SVG as letters."""
    style = tmp_path / "letters.mplstyle"
    style.write_text("svg.fonttype: none\n")
    return style


def test_title_groups_and_linear_axes_arrive(small_trace, tmp_path, readable):
    path = tmp_path / "a.svg"
    title = "Costs $5, or 100 % of it: a title that is longer than one line of a single column"
    done = plot(
        small_trace, "-o", path, "--title", title, "--by", r"(encoder|decoder)\.", "--linear", "--style", readable
    )
    assert done.exit_code == 0, done.output
    text = " ".join(words(path).split())
    assert "Costs $5, or 100 % of it:" in text
    assert "encoder" in text
    assert "decoder" in text
    assert "embedding" not in text


def test_several_traces_side_by_side(small_trace, tmp_path, readable):
    other = write_small_trace(tmp_path / "other.h5", steps=15, seed=1)
    for kind in ("scatter", "stability", "curves"):
        path = tmp_path / f"{kind}.svg"
        assert plot(small_trace, other, "-o", path, "--kind", kind, "--style", readable).exit_code == 0
        assert "small" in words(path)
        assert "other" in words(path)
    path = tmp_path / "optimizers.svg"
    options = ("--kind", "curves", "--by", "optimizer", "--style", readable)
    assert plot(small_trace, other, "-o", path, *options).exit_code == 0
    assert "SGD" in words(path)
    assert "other" not in words(path)
    refused(
        plot(small_trace, other, "-o", tmp_path / "a.png", "--kind", "heatmap"), "heatmap draws one trace", "curves"
    )


def test_options_that_a_kind_does_not_have_are_refused(small_trace, tmp_path):
    path = tmp_path / "a.png"
    refused(plot(small_trace, "-o", path, "--kind", "stability", "--by", "module"), "does not group", "heatmap")
    refused(plot(small_trace, "-o", path, "--kind", "segments", "--linear"), "--linear")
    refused(plot(small_trace, "-o", path, "--kind", "curves", "--by", "optimiser"), "did you mean optimizer?")
    refused(plot(small_trace, "-o", path, "--by", "modul("), "not a valid regular expression")
    refused(plot(small_trace, "-o", path, "--style", "ggplt"), "did you mean ggplot?")
    refused(plot(small_trace, "-o", path, "--style", "no/such.mplstyle"), "no/such.mplstyle")
    binary = tmp_path / "binary.mplstyle"
    binary.write_bytes(bytes(range(256)))
    refused(plot(small_trace, "-o", path, "--style", binary), "binary.mplstyle")
    assert not path.exists()


def test_all_draws_every_kind_and_says_which_not(small_trace, tmp_path):
    folder = tmp_path / "figures"
    done = plot(small_trace, "--all", "-o", folder)
    assert done.exit_code == 0, done.output
    drawn = sorted(path.stem for path in folder.iterdir())
    assert drawn == sorted(set(KINDS) - {"density"})
    for name in drawn:
        assert f"Wrote {folder / name}.png." in done.output
    assert "Left out density:" in done.output
    assert "densities=True" in done.output
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused(plot(small_trace, "--all", "-o", folder), "scatter.png", "--force")
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_all_of_a_trace_with_everything_leaves_nothing_out(tmp_path):
    trace = write_small_trace(tmp_path / "run.h5", steps=12, densities=True)
    done = plot(trace, "--all", "-o", tmp_path / "figures")
    assert "Left out" not in done.output
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == sorted(KINDS)


def test_all_of_an_empty_trace_fails_and_writes_nothing(tmp_path):
    trace = write_small_trace(tmp_path / "run.h5", steps=1, every=lambda step: False)
    done = plot(trace, "--all", "-o", tmp_path / "figures")
    assert done.exit_code == 1
    assert done.output.count("no step has been measured yet") >= 6
    assert not (tmp_path / "figures").exists()


def test_usage_of_all(small_trace, tmp_path):
    assert plot(small_trace, "--all").exit_code == 2
    assert plot(small_trace, "--all", "--kind", "scatter", "-o", tmp_path).exit_code == 2
    assert plot().exit_code == 2
    file = tmp_path / "file"
    file.touch()
    refused(plot(small_trace, "--all", "-o", file), "is a file")


def test_without_a_display_a_named_file_is_written(small_trace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    done = plot(small_trace, "--kind", "segments")
    assert done.exit_code == 0, done.output
    assert "Wrote small-segments.png" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["small-segments.png"]
    refused(plot(small_trace, "--kind", "segments"), "small-segments.png", "--force")


def test_with_a_display_a_window_is_shown_and_nothing_written(small_trace, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(plt, "get_backend", lambda: "QtAgg")
    monkeypatch.setattr(
        plt, "show", lambda: shown.append([figure.axes for figure in map(plt.figure, plt.get_fignums())])
    )
    plt.close("all")
    done = plot(small_trace)
    plt.close("all")
    assert done.exit_code == 0, done.output
    assert [len(axes) for axes in shown[0]] == [2]
    assert not list(tmp_path.iterdir())


def test_plot_imports_no_torch_and_opens_no_window(small_trace, tmp_path):
    script = (
        "import sys; from lsmooth.cli import main\n"
        f"main(['plot', {str(small_trace)!r}, '-o', {str(tmp_path / 'a.png')!r}], standalone_mode=False)\n"
        "import matplotlib.pyplot as plt\n"
        "print('torch' in sys.modules, plt.get_fignums(), {name for name in sys.modules if 's.backend_' in name})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False [] {'matplotlib.backends.backend_agg'}"


def test_the_geometry_is_that_of_the_recording(small_trace, tmp_path, readable):
    path = tmp_path / "a.svg"
    trace = write_small_trace(tmp_path / "run.h5", steps=12, norms=("spectral",))
    done = plot(trace, "-o", path, "--norm", "spectral", "--style", readable)
    assert done.exit_code == 0, done.output
    assert "spectral geometry" in words(path)
    refused(plot(trace, "-o", tmp_path / "b.svg", "--norm", "spectral", "--kind", "segments"), "--norm")
    refused(plot(small_trace, "-o", tmp_path / "b.svg", "--norm", "linf"), "linf")
    done = plot(trace, "--all", "--norm", "spectral", "-o", tmp_path / "all")
    assert sorted(path.stem for path in (tmp_path / "all").iterdir()) == sorted(set(KINDS) - {"density"})


def test_many_points_are_an_image_between_vectors(tmp_path, small_trace):
    """In PDF, text stays text of an embedded font, and points are one compressed image."""
    from matplotlib.figure import Figure

    from lsmooth.figures import smoothness_scatter, style

    sizes, images = {}, {}
    for count in (1000, 40_000):
        generator = np.random.default_rng(0)
        grad_norm = np.exp(generator.normal(size=count))
        frame = pd.DataFrame({"step": np.arange(count), "grad_norm": grad_norm, "smoothness": 2 + grad_norm**2})
        with style():
            figure = Figure((3.25, 2.6), layout="constrained")
            smoothness_scatter(frame, ax=figure.add_subplot())
            figure.savefig(tmp_path / f"{count}.pdf")
        content = (tmp_path / f"{count}.pdf").read_bytes()
        sizes[count] = len(content)
        assert b"/FontFile2" in content
        images[count] = content.count(b"/Subtype /Image")
    # The colour scale is one in either.
    assert images[1000] == 1 < images[40_000]
    assert sizes[40_000] < 300_000


def test_marginals_stand_beside_the_scatter_of_one_trace_alone(small_trace, tmp_path):
    plain, path = tmp_path / "plain.png", tmp_path / "a.png"
    assert plot(small_trace, "-o", plain).exit_code == 0
    assert plot(small_trace, "-o", path, "--marginals").exit_code == 0
    assert path.read_bytes() != plain.read_bytes()
    other = ("-o", tmp_path / "b.png", "--marginals")
    refused(plot(small_trace, *other, "--kind", "heatmap"), "--marginals goes with the scatter")
    refused(plot(small_trace, small_trace, *other), "--marginals goes with the scatter")
    refused(plot(small_trace, *other, "--by", "module"), "--by")


def test_an_image_of_too_many_pixels_is_one_sentence(small_trace, tmp_path):
    output = tmp_path / "huge.png"
    arguments = ["plot", str(small_trace), "-o", str(output), "--size", "50x50", "--dpi", "2400"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert re.fullmatch(
        r"Error: 50x50 inches at 2400 dots .* take a smaller --size or --dpi, or write a \.pdf\.", result.output.strip()
    )
    assert not output.exists()
