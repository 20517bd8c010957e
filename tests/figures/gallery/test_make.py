"""The gallery: an example of every kind, small, shown in the documentation, and drawn by what draws it."""

import struct
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from small_trace import write_small_trace

import lsmooth
from lsmooth import figures
from lsmooth.figures.kinds import KINDS

ROOT = Path(__file__).parents[3]
GALLERY = ROOT / "figures" / "gallery"
# Figure-level forms of one kind, what docs/theory.md shows, and what is no figure.
SHOWN_BY_ANOTHER = {"constants_panels", "loss_frame", "lower_bound", "style"}


def test_every_kind_has_a_small_example_that_the_page_shows():
    pictures = {path.stem: path for path in GALLERY.glob("*.png")}
    assert set(pictures) == set(figures.__all__) - SHOWN_BY_ANOTHER
    page = (ROOT / "docs" / "figures.md").read_text()
    for name, path in pictures.items():
        assert path.stat().st_size < 80_000
        assert struct.unpack(">I", path.read_bytes()[16:20])[0] == 650
        assert f"](../figures/gallery/{name}.png)" in page
        assert f"`{name}`" in page
    for kind in KINDS:
        assert f"`--kind {kind}`" in page


def test_what_draws_the_gallery_draws_every_picture(load_from_gallery, tmp_path):
    make = load_from_gallery("make")
    path = write_small_trace(tmp_path / "run.h5", steps=20, densities=True)
    losses = pd.DataFrame({"optimizer": "sgd", "seed": [0, 1], "step": 1, "valid_loss": [1.0, 2.0]})
    drawn = set()
    with lsmooth.Trace(path) as trace, figures.style():
        for name, figure in make.draw(trace, trace, losses):
            figure.draw_without_rendering()
            assert figure.axes
            drawn.add(name)
    assert drawn == {path.stem for path in GALLERY.glob("*.png")}


@pytest.mark.slow
def test_the_command_draws_the_gallery_twice_the_same(tmp_path):
    for name in ("one", "other"):
        command = [sys.executable, str(GALLERY / "make.py"), "--out", str(tmp_path / name), "--steps", "24"]
        subprocess.run(command, check=True, capture_output=True)
    one = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    other = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    assert set(one) == {path.name for path in GALLERY.glob("*.png")}
    assert one == other
