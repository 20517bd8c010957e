"""Every kind of figure, of ordinary and of hostile traces: no text overlaps another, none leaves the figure."""

import itertools

import numpy as np
import pytest
from click.testing import CliRunner
from made_up import LONG_NAME, made_up
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from small_trace import write_small_trace

import lsmooth
from lsmooth.cli import main
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import style
from lsmooth.figures.house import DASHES, FLAGGED, LINES, sequential
from lsmooth.figures.kinds import KINDS, Options, draw_kind
from lsmooth.figures.rendering import render
from lsmooth.trace.layout import Status


def zeros_and_holes(rows):
    """Half of the steps have values that no logarithmic axis can show."""
    rows["grad_diff"][::4] = 0
    rows["grad_norm"][1::4] = 0
    rows["loss"][2] = np.nan
    rows["coordinate/grad"][::3] = 0
    rows["grad_diff"][3] = np.nan
    rows["status"][3] = int(Status.NON_FINITE)


def one_norm(rows):
    """All points lie in one place."""
    for name in ("grad_norm", "step_norm", "grad_diff", "loss", "loss_along"):
        rows[name][:] = 1.0


HOSTILE = {
    "ordinary": {},
    "many layers with long names": {"tensors": 150, "name": LONG_NAME},
    "few layers with long names": {"tensors": 3, "name": LONG_NAME},
    "one layer": {"tensors": 1},
    "one step": {"steps": 1},
    "two steps": {"steps": 2},
    "tiny numbers": {"scale": 1e-30},
    "huge numbers": {"scale": 1e30},
    "all flagged": {"status": Status.BELOW_RESOLUTION},
    "zeros and holes": {"spoil": zeros_and_holes, "steps": 40},
    "one place": {"spoil": one_norm, "steps": 20},
    "names that are mathematics": {"name": "layers.$x_{}$.we_ight^2"},
}


def texts(figure):
    """Every visible text with its bounding box."""
    figure.draw_without_rendering()
    # Ticks beyond an axis's limits exist, and are not drawn.
    unseen = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        seen = set(axis._update_ticks())
        unseen |= {label for tick in (*axis.majorTicks, *axis.minorTicks) if tick not in seen for label in labels(tick)}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text, text.get_window_extent()) for text in found if text not in unseen]


def labels(tick):
    return tick.label1, tick.label2


def defects(figure):
    """What a reader would trip over."""
    found = texts(figure)
    wrong = []
    for text, box in found:
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > figure.bbox.x1 + 0.5 or box.y1 > figure.bbox.y1 + 0.5:
            wrong.append(f"{text.get_text()!r} leaves the figure")
        if text.get_fontsize() != 8:
            wrong.append(f"{text.get_text()!r} is set at {text.get_fontsize()} points")
    for (one, first), (other, second) in itertools.combinations(found, 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        # Boxes are as high as the font; a line's worth of their edges is empty.
        if width > 1 and height > 0.25 * min(first.height, second.height):
            wrong.append(f"{one.get_text()!r} overlaps {other.get_text()!r}")
    return wrong


@pytest.fixture(scope="module", params=HOSTILE)
def trace(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "run.h5"
    with lsmooth.Trace(made_up(path, **HOSTILE[request.param])) as opened:
        yield opened


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "density"])
def test_a_figure_is_legible_or_one_sentence(trace, kind):
    with style():
        figure = Figure(layout="constrained")
        sentence = None
        try:
            draw_kind(kind, [trace], figure, Options())
        except InvalidArgumentError as error:
            sentence = str(error)
        if sentence is not None:
            assert sentence.endswith(".")
            assert "\n" not in sentence
            return
        assert defects(figure) == []
        for ax in figure.axes:
            assert min(ax.get_window_extent().size) > 4
        render(figure, ".png", 50)


@pytest.mark.filterwarnings("error")
def test_a_density_is_legible(tmp_path):
    path = write_small_trace(tmp_path / "run.h5", steps=5, densities=True)
    with style(), lsmooth.Trace(path) as trace:
        figure = Figure(layout="constrained")
        draw_kind("density", [trace], figure, Options(title="All coordinates of a small Transformer, five steps"))
        assert defects(figure) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("kind", [kind for kind, known in KINDS.items() if known.several])
def test_several_traces_are_legible(tmp_path, kind, count):
    traces = [
        lsmooth.Trace(made_up(tmp_path / f"a_run_with_a_long_name_and_seed_{k}.h5", steps=30, scale=10.0**k))
        for k in range(count)
    ]
    with style():
        figure = Figure(layout="constrained")
        draw_kind(
            kind,
            traces,
            figure,
            Options(title="Several runs, and a title that needs more than a single line of it"),
        )
        assert defects(figure) == []
        render(figure, ".png", 50)
    for trace in traces:
        trace.close()


def test_overlaps_would_be_found():
    with style():
        figure = Figure((3.25, 2))
        figure.text(0.5, 0.5, "one text")
        figure.text(0.55, 0.52, "another")
        figure.text(0.9, 0.1, "beyond the edge", size=11)
    assert len(defects(figure)) == 3


def luminance(colour, seen_by=np.eye(3)):  # noqa: B008
    """Relative luminance, as grey print shows it, or as readers with another matrix of vision see it."""
    linear = np.where((rgb := np.array(to_rgb(colour))) <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(np.clip(seen_by @ linear, 0, 1) @ [0.2126, 0.7152, 0.0722])


# Machado, Oliveira, Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency", at
# severity 1; they take linear RGB.
VISION = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("vision", VISION)
def test_a_colour_blind_reader_can_order_iterations(vision):
    shades = [luminance(sequential()(step / 20)[:3], np.array(VISION[vision])) for step in range(21)]
    assert np.all(np.diff(shades) > 0)
    assert shades[-1] - shades[0] > 0.3


def test_colours_survive_grey_print():
    shades = [luminance(sequential()(step / 20)[:3]) for step in range(21)]
    assert np.all(np.diff(shades) > 0)
    assert shades[-1] - shades[0] > 0.4
    # No end of it vanishes on white paper.
    assert (1.05) / (shades[-1] + 0.05) > 1.5
    # Neighbouring lines differ in dashes; each is seen on white.
    assert len({str(dash) for dash in DASHES}) == len(DASHES) >= 4
    for colour in (*LINES, FLAGGED):
        assert 1.05 / (luminance(colour) + 0.05) > 2


def test_the_command_says_one_sentence_of_a_hostile_trace(tmp_path):
    path = made_up(tmp_path / "run.h5", spoil=lambda rows: rows["grad_diff"].fill(0))
    done = CliRunner().invoke(main, ["plot", str(path), "-o", str(tmp_path / "a.png")])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert "linear" in done.output
    done = CliRunner().invoke(main, ["plot", str(path), "-o", str(tmp_path / "a.png"), "--linear"])
    assert done.exit_code == 0, done.output
