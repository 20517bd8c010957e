"""A trace in a notebook."""

import re

import numpy as np
from made_up import made_up
from small_trace import write_small_trace

import lsmooth
from lsmooth.trace.layout import Status


def cells(html):
    return dict(re.findall(r"<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>", html))


def test_a_notebook_shows_what_a_trace_holds(tmp_path):
    def flag(rows):
        rows["status"][:2] = int(Status.NON_FINITE)

    with lsmooth.Trace(made_up(tmp_path / "run.h5", steps=40, spoil=flag)) as trace:
        shown = cells(trace._repr_html_())
        values = trace.cloud().smoothness[2:]
    assert shown["steps"] == "40 measured, 0 to 39; 38 of them well"
    assert shown["flagged"] == "2 non finite"
    assert shown["smoothness"] == f"median {np.median(values):.4g}, from {values.min():.4g} to {values.max():.4g}"


def test_text_of_a_trace_is_escaped(tmp_path):
    folder = tmp_path / "<script>x"
    folder.mkdir()
    with lsmooth.Trace(made_up(folder / "run.h5", optimizer="<img src=x onerror=y>")) as trace:
        html = trace._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;img src=x" in html


def test_an_empty_trace_is_shown(tmp_path):
    path = write_small_trace(tmp_path / "run.h5", steps=1, every=lambda step: False)
    with lsmooth.Trace(path) as trace:
        assert cells(trace._repr_html_())["steps"] == "none measured yet"
