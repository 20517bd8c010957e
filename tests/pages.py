"""What the tests of pages share: the page of traces, and a name that would run a script."""

import json
import re
from contextlib import ExitStack

import lsmooth

HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 2'>$$x$$"


def page_of(*paths):
    from lsmooth.figures.report import report_page

    with ExitStack() as stack:
        return report_page([stack.enter_context(lsmooth.Trace(path)) for path in paths])


def figures(page):
    """What the page gives to Bokeh."""
    (text,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def without_bokeh(page):
    """The page without Bokeh's own scripts, which are long."""
    parts = re.split(r"(<script>.*?</script>)", page, flags=re.DOTALL)
    return "".join(part for part in parts if len(part) < 100_000 or not part.startswith("<script>"))
