"""Every Python snippet of README and docs runs, block after block, one namespace a page."""

import re
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# What these need and must give stands in tests/integrations/test_pages.py and tests/trace/test_format_page.py.
RUN_ELSEWHERE = {"integrations.md", "distributed.md", "trace-format.md"}
# A comment with code that a reader need not see, a block that says why it is not run, or a block to run.
BLOCK = re.compile(
    r"<!-- python\n(?P<hidden>.*?)-->"
    r"|<!-- not run: (?P<reason>[^\n]+) -->\s*```python\n.*?```"
    r"|^```python[^\n]*\n(?P<shown>.*?)^```",
    re.DOTALL | re.MULTILINE,
)


def blocks(page):
    """Line number and code of everything on a page that is to be run."""
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        code = match["hidden"] if match["hidden"] is not None else match["shown"]
        if code is not None:
            found.append((text.count("\n", 0, match.start()) + 1, code))
    return found


def test_the_pages_are_found():
    assert {"README.md", "index.md"} <= {page.name for page in PAGES}
    assert len(blocks(ROOT / "README.md")) == 3


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in RUN_ELSEWHERE and blocks(page)], ids=lambda page: page.name
)
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {"__name__": "__snippet__"}
    for line, code in blocks(page):
        # Line numbers in a traceback are those of the page.
        exec(compile("\n" * line + code, str(page), "exec"), names)
    assert set(names) > {"__name__"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
