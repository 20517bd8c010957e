"""What the tests of pages share: the page of traces, and a name that would run a script."""

from contextlib import ExitStack

import lsmooth

HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 2'>$$x$$"


def page_of(*paths):
    from lsmooth.figures.report import report_page

    with ExitStack() as stack:
        return report_page([stack.enter_context(lsmooth.Trace(path)) for path in paths])
