"""Every kind of figure, pixel by pixel against a picture that was looked at.

`pytest tests/figures/test_images.py --renew-images` draws the pictures in baseline/ anew; then look at each.
"""

from contextlib import ExitStack
from pathlib import Path

import matplotlib
import matplotlib.style
import pytest
from made_up import made_up, smooth_run
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure

import lsmooth
from lsmooth.figures import style
from lsmooth.figures.kinds import KINDS, Options, draw_kind

BASELINE = Path(__file__).parent / "baseline"
RENEW = "pytest tests/figures/test_images.py --renew-images"
DPI = 80
# The release of matplotlib: another may set text otherwise. Pictures by 3.10 are 20 to 60 levels away, those by other
# versions of one release are the same. To go to another release: change this, draw the pictures anew, look at each.
DRAWN_WITH = "3.11"
# Root mean square over pixels and channels, of 255.
TOLERANCE = 3

pytestmark = pytest.mark.skipif(
    matplotlib.__version__.split(".")[:2] != DRAWN_WITH.split("."),
    reason=f"the pictures were drawn with matplotlib {DRAWN_WITH}; other releases set text otherwise",
)


RUNS = (("SGD", 0), ("SGD", 1), ("SGD", 2), ("Adam", 3), ("Adam", 4), ("Adam", 5))


def written(path, optimizer, seed):
    return made_up(
        path,
        steps=60,
        spoil=lambda rows: smooth_run(rows, seed, pace=2.0 if optimizer == "SGD" else 6.0),
        optimizer=optimizer,
        densities=seed == 0,
    )


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Two optimizers, three seeds each; the first run has densities."""
    folder = tmp_path_factory.mktemp("images")
    with ExitStack() as stack:
        yield [
            stack.enter_context(lsmooth.Trace(written(folder / f"{optimizer}-{seed}.h5", optimizer, seed)))
            for optimizer, seed in RUNS
        ]


def draw(kind, traces, path):
    """Draw a kind in the house style, whatever fonts and settings the machine has."""
    options = Options(by="optimizer") if kind == "curves" else Options()
    shown = traces if kind == "curves" else traces[:1]
    with matplotlib.style.context("default"), style({"font.family": ["DejaVu Sans"]}):
        figure = draw_kind(kind, shown, Figure(layout="constrained"), options)
        figure.savefig(path, dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_looks_as_it_did(kind, traces, tmp_path, request):
    expected = BASELINE / f"{kind}.png"
    if request.config.getoption("renew_images"):
        draw(kind, traces, expected)
        return
    assert expected.is_file(), f"There is no {expected}; draw it with {RENEW}, and look at it."
    actual = tmp_path / f"{kind}.png"
    draw(kind, traces, actual)
    try:
        difference = compare_images(str(expected), str(actual), TOLERANCE)
    except ImageComparisonFailure as sizes_differ:
        difference = str(sizes_differ)
    if difference:
        pytest.fail(
            f"{difference.strip()}\nThe actual picture is {actual}, and the difference, where the sizes agree, "
            f"{actual.with_name(f'{kind}-failed-diff.png')}. If the new one is meant: {RENEW}",
            pytrace=False,
        )


def test_every_picture_is_of_a_kind_and_small():
    pictures = list(BASELINE.glob("*.png"))
    assert {path.stem for path in pictures} == set(KINDS)
    assert sum(path.stat().st_size for path in pictures) < 300_000
