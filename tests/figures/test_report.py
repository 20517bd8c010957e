"""A page tells a run by itself: nothing outside of it is needed, and no text of a trace is more than text."""

import json
import re
import sys

import numpy as np
import pytest
from made_up import made_up, smooth_run
from pages import HOSTILE, page_of
from small_trace import write_small_trace

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.trace.layout import Status

pytest.importorskip("bokeh")
pytest.importorskip("jinja2")


def figures(page):
    """What the page gives to Bokeh."""
    (text,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def without_bokeh(page):
    """The page without Bokeh's own scripts, which are long."""
    parts = re.split(r"(<script>.*?</script>)", page, flags=re.DOTALL)
    return "".join(part for part in parts if len(part) < 100_000 or not part.startswith("<script>"))


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
        assert f">{row.group}</button>" in page
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


def test_the_edge_ratio_is_drawn_where_it_was_measured(tmp_path, monkeypatch):
    path = write_small_trace(tmp_path / "run.h5", steps=12)
    content = figures(page_of(path))
    assert "edge-0" in {root for item in content["items"] for root in item["roots"].values()}
    assert "Edge ratio" in page_of(path)

    def not_there(*_):
        raise TraceError("a trace of an earlier format")

    monkeypatch.setattr(lsmooth.Trace, "curvature", not_there)
    assert "Edge ratio" not in page_of(path)


@pytest.mark.parametrize(
    ("smoothness", "says"),
    [
        (lambda x, noise: 2 + 3 * x * noise, "Smoothness grows with the gradient norm: smoothness is about"),
        (lambda x, noise: 20 + 0.3 * x + 0 * noise, "Smoothness hardly grows with the gradient norm: "),
        (lambda x, noise: 5 * noise, "It is not shown that smoothness grows with the gradient norm: "),
    ],
)
def test_the_verdict_says_what_the_fit_says(tmp_path, smoothness, says):
    from lsmooth.figures.report.facts import verdict

    def cloud(rows):
        generator = np.random.default_rng(1)
        count, tensors = rows["grad_norm"].shape[:2]
        x = np.exp(generator.normal(size=count))
        y = smoothness(x, np.exp(0.3 * generator.normal(size=count)))
        share = np.sqrt(1 / tensors)
        rows["grad_norm"][:] = (x * share)[:, None].reshape(rows["grad_norm"][:, :1].shape)
        rows["step_norm"][:] = share
        gammas = np.array([0.25, 0.5, 0.75])
        rows["grad_diff"][:] = (y[:, None] * gammas * share)[..., None]

    with lsmooth.Trace(made_up(tmp_path / "run.h5", steps=200, spoil=cloud)) as trace:
        found = verdict(trace)
        row = lsmooth.estimate(trace, method="trend").iloc[0]
        norms = trace.cloud().grad_norm[:, 0]
    assert found.startswith(says)
    low, high = row["L0"] + row["L1"] * np.percentile(norms, [5, 95])
    assert f"a factor of {high / low:.3g} over" in found
    assert f"{row['L0']:.3g} + {row['L1']:.3g} ‖g‖" in found


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


def test_a_page_of_100_000_points_is_small(tmp_path):
    path = made_up(tmp_path / "run.h5", steps=100_000, tensors=4)
    page = page_of(path)
    assert len(page.encode()) < 6e6
    assert "An even choice" not in page
    several = page_of(path, path)
    assert len(several.encode()) < 6e6
    assert several.count("An even choice of 50,000 measured steps.") == 2


def test_several_runs_share_axes_colours_and_the_curves_figure(tmp_path):
    paths = [made_up(tmp_path / f"{name}.h5", steps=30, scale=scale) for name, scale in (("a", 1.0), ("b", 100.0))]
    page = page_of(*paths)
    roots = [root for item in figures(page)["items"] for root in item["roots"].values()]
    assert roots.count("curve") == 1
    assert {"cloud-0", "cloud-1", "heatmap-0", "heatmap-1"} <= set(roots)
    assert page.count('class="legend"') == 1
    assert page.count("<h3>a</h3>") == page.count("<h3>b</h3>") >= 4


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


def test_every_flag_has_its_meaning():
    from lsmooth.figures.report.facts import MEANINGS

    assert list(MEANINGS) == list(Status)


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
