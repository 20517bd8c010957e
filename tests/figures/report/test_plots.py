"""What a page draws, and how much of it."""

import pytest
from made_up import made_up
from pages import figures, page_of
from small_trace import write_small_trace

import lsmooth
from lsmooth.errors import TraceError

pytest.importorskip("bokeh")
pytest.importorskip("jinja2")


def test_the_edge_ratio_is_drawn_where_it_was_measured(tmp_path, monkeypatch):
    path = write_small_trace(tmp_path / "run.h5", steps=12)
    content = figures(page_of(path))
    assert "edge-0" in {root for item in content["items"] for root in item["roots"].values()}
    assert "Edge ratio" in page_of(path)

    def not_there(*_):
        raise TraceError("a trace of an earlier format")

    monkeypatch.setattr(lsmooth.Trace, "curvature", not_there)
    assert "Edge ratio" not in page_of(path)


def test_a_page_of_100_000_points_is_small(tmp_path):
    path = made_up(tmp_path / "run.h5", steps=100_000, tensors=4)
    page = page_of(path)
    assert len(page.encode()) < 6e6
    assert "An even choice" not in page


def test_several_runs_share_the_number_of_points_of_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr("lsmooth.figures.report.plots.MOST_POINTS", 200)
    path = made_up(tmp_path / "run.h5", steps=150, tensors=4)
    assert "An even choice" not in page_of(path)
    assert page_of(path, path).count("An even choice of 75 measured steps.") == 2


def test_several_runs_share_axes_colours_and_the_curves_figure(tmp_path):
    paths = [made_up(tmp_path / f"{name}.h5", steps=30, scale=scale) for name, scale in (("a", 1.0), ("b", 100.0))]
    page = page_of(*paths)
    roots = [root for item in figures(page)["items"] for root in item["roots"].values()]
    assert roots.count("curve") == 1
    assert {"cloud-0", "cloud-1", "heatmap-0", "heatmap-1"} <= set(roots)
    assert page.count('class="legend"') == 1
    assert page.count("<h3>a</h3>") == page.count("<h3>b</h3>") >= 4
