"""A page tells a run by itself: nothing outside of it is needed, and no text of a trace is more than text."""

import re
import sys

import numpy as np
import pytest
from made_up import made_up, smooth_run
from pages import HOSTILE, figures, page_of, without_bokeh
from small_trace import write_small_trace

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.trace.layout import Status

pytest.importorskip("bokeh")
pytest.importorskip("jinja2")


def test_the_page_has_all_sections_and_numbers(tmp_path):
    path = made_up(tmp_path / "run.h5", steps=60, spoil=lambda rows: smooth_run(rows, 0, pace=2.0))
    page = page_of(path)
    for heading in ("Smoothness against gradient norm", "Layers", "Training loss", "Advice", "How it was measured"):
        assert f"<h2>{heading}</h2>" in page
    with lsmooth.Trace(path) as trace:
        table = lsmooth.estimate(trace, by="module")
        trend = lsmooth.estimate(trace, method="trend").iloc[0]
        counts = trace.status_counts()
    assert f"smoothness is about {trend['L0']:.3g} + {trend['L1']:.3g} ‖g‖" in page
    for row in table.itertuples():
        assert f"<td>{row.L0:.3g}</td>" in page
        assert f">{row.group.replace('.', '.<wbr>')}</button>" in page
    assert counts["below_resolution"] == 3
    assert "<strong>below_resolution</strong>: the step is so short" in page
    assert {root for item in figures(page)["items"] for root in item["roots"].values()} == {
        "cloud-0",
        "layer-0",
        "heatmap-0",
        "stability-0",
        "edge-0",
        "curve",
    }


def test_a_long_name_of_a_layer_breaks_after_its_dots(tmp_path):
    page = page_of(made_up(tmp_path / "run.h5", name="encoder.layers.{}.self_attn.weight", steps=12))
    assert page.startswith("<!DOCTYPE html>")
    assert ">encoder.<wbr>layers.<wbr>0.<wbr>self_attn</button>" in page


def test_nothing_is_asked_of_the_network(tmp_path):
    page = page_of(write_small_trace(tmp_path / "run.h5", steps=12))
    own = without_bokeh(page)
    assert not re.search(r"(src|href)\s*=", own)
    assert "http" not in own.replace("http-equiv", "")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "connect-src" not in policy


def test_names_and_metadata_are_text_alone(tmp_path):
    folder = tmp_path / "<b>run<"
    folder.mkdir()
    path = write_small_trace(folder / "a&b.h5", steps=12, metadata={"note <i>": HOSTILE})
    other = made_up(tmp_path / "b.h5", name="layer{}." + HOSTILE + ".weight", steps=12)
    page = page_of(path, other)
    own = without_bokeh(page)
    assert "<script>window.stolen" not in page
    assert "<img" not in own
    assert "<i>" not in own
    assert "<b>run" not in own
    assert "&lt;script&gt;window.stolen" in own
    assert page.count("<script") == page.count("</script>") == 5


@pytest.mark.parametrize(
    "hostile",
    [
        {"steps": 1},
        {"status": Status.BELOW_RESOLUTION},
        {"scale": 1e-30},
        {"spoil": lambda rows: rows["loss"].fill(np.nan)},
    ],
)
def test_a_run_without_much_to_tell_has_a_page(tmp_path, hostile):
    page = page_of(made_up(tmp_path / "run.h5", **hostile))
    assert "</html>" in page


def test_an_empty_run_has_a_page(tmp_path):
    page = page_of(write_small_trace(tmp_path / "run.h5", steps=1, every=lambda step: False))
    assert "No step has been measured yet." in page


def test_what_is_missing_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(InvalidArgumentError, match="no trace"):
        page_of()
    path = write_small_trace(tmp_path / "run.h5", steps=2)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(InvalidArgumentError, match=r"needs bokeh.*lsmooth\[report\]"):
        page_of(path)
