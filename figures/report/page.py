"""The page itself: facts and figures put into its template, with everything that it needs inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.points import run_names
from lsmooth.trace.reader import Trace

_HERE = Path(__file__).parent


def report_page(traces: Sequence[Trace]) -> str:
    """Return a page about one run, or several side by side, as HTML that needs no other file and no network.

    Names and metadata of a trace are escaped, and the page allows no script but its own.

    Args:
        traces: Open traces.

    Raises:
        InvalidArgumentError: There is no trace, or Bokeh or Jinja2 is not installed (extra `report`).
        TraceError: A trace is damaged.
    """
    if not traces:
        raise InvalidArgumentError("There is no trace to report on; give one.")
    try:
        import bokeh  # noqa: F401
        import jinja2
    except ImportError as error:
        raise InvalidArgumentError(
            f"A report needs {error.name}; install it with: pip install 'lsmooth[report]'."
        ) from None
    from lsmooth.figures.report.facts import facts_of
    from lsmooth.figures.report.plots import plots_of, training_curve

    facts = [facts_of(trace, name) for trace, name in zip(traces, run_names(traces), strict=True)]
    plots = plots_of(traces, [fact.constants for fact in facts])
    curve = training_curve(traces, [fact.name for fact in facts])
    figures = [made for run in plots for made in (run.cloud, run.layer, run.heatmap, run.stability, run.edge)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    scripts = [*_bokeh_scripts(), (_HERE / "page.js").read_text(encoding="utf-8")]
    return environment.get_template("page.html").render(
        runs=list(zip(facts, plots, strict=True)),
        curve=curve,
        style=_safe((_HERE / "page.css").read_text(encoding="utf-8")),
        scripts=[_safe(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        figures=_safe(_as_json([made for made in (*figures, curve) if made is not None])),
    )


def _as_json(figures: Sequence[Any]) -> str:
    """Return the figures as JSON that cannot end the script element that holds it."""
    from bokeh.core.json_encoder import serialize_json
    from bokeh.document import Document
    from bokeh.embed.util import standalone_docs_json_and_render_items

    document = Document()
    for made in figures:
        document.add_root(made)
    docs, items = standalone_docs_json_and_render_items([document])
    places = {made.id: made.name for made in figures}
    content = serialize_json({"docs": docs, "items": [{**item.to_json(), "roots": places} for item in items]})
    return str(content).replace("<", "\\u003c")


@cache
def _bokeh_scripts() -> tuple[str, ...]:
    from bokeh.resources import Resources

    return tuple(Resources(mode="inline", components=["bokeh", "bokeh-gl"]).js_raw)


def _hash(script: str) -> str:
    """Return what a Content-Security-Policy calls a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _safe(text: str) -> Any:
    """Mark text that lsmooth itself wrote as safe, so that it is not escaped."""
    from markupsafe import Markup

    if "</script" in text.lower() or "</style" in text.lower():
        raise AssertionError("A script or style of the page would end before its end.")
    return Markup(text)
