"""Every Python snippet of README and docs runs, block after block, one namespace a page; so do docstrings' examples."""

import doctest
import importlib
import json
import re
import shlex
from pathlib import Path

import matplotlib
import pytest
from click.testing import CliRunner
from noisy_runs import simulated
from small_trace import write_small_trace

from lsmooth.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.ipynb"))]
# What these need and must give stands in tests/integrations/test_pages.py and tests/trace/test_format_page.py.
RUN_ELSEWHERE = {
    "criterion.md", "distributed.md", "hugging-face.md", "integrations.md", "lightning.md", "logs.md",
    "trace-format.md",
}  # fmt: skip
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


WITH_EXAMPLES = [
    path.relative_to(ROOT).with_suffix("")
    for folder in ("lsmooth", "figures", "cli")
    for path in sorted((ROOT / folder).rglob("*.py"))
    # Those on frameworks are not run, and only import where the frameworks are.
    if ">>>" in path.read_text() and path.parent.name != "integrations"
]


@pytest.mark.parametrize("module", WITH_EXAMPLES, ids=str)
def test_examples_in_docstrings_give_what_they_show(module):
    name = ".".join(module.parts if module.parts[0] == "lsmooth" else ("lsmooth", *module.parts))
    # `loader` is what examples take for given.
    assert doctest.testmod(importlib.import_module(name), extraglobs={"loader": ()}).failed == 0


def prose(page):
    """A page's text, without its code: of a notebook, its cells of text."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The anchors that GitHub and the site give to a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(page, text):
    """Targets of links and pictures that are no file, or no heading of one; addresses of the web are taken for good."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert dead_links(page, prose(page)) == []


# What Markdown takes for emphasis. The pages write emphasis with asterisks, and indices with underscores.
# Neither reaches beyond a paragraph or a cell.
INDICES_LOST = re.compile(r"(?<![\w\\])_(?!_)(?:(?!\n\n|(?<!\\)\|).)+?(?<![_\\])_(?!\w)", re.DOTALL)


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_no_index_of_a_formula_is_lost_as_emphasis(page):
    lines = re.sub(r"`[^`\n]+`", "", prose(page))
    assert INDICES_LOST.findall(lines) == []


def test_a_lost_index_is_seen():
    assert INDICES_LOST.findall("asks for ‖∇_i f(X) − ∇_i f(Y)‖_(i) of x_t and x_{t+1}") == ["_i f(X) − ∇_i f(Y)‖_"]
    assert INDICES_LOST.findall(r"asks for ‖∇\_i f(X) − ∇\_i f(Y)‖\_(i) of x_t and x_{t+1}") == []


def test_dead_links_are_seen():
    text = "[a](gone.md) [b](docs/recorder.md#no-heading) [c](#nowhere) [d](docs/recorder.md#resuming) ![e](no.png)"
    dead = ["gone.md", "docs/recorder.md#no-heading", "#nowhere", "no.png"]
    assert dead_links(ROOT / "README.md", text) == dead


def test_tests_that_are_named_are_there():
    named = {name for page in PAGES for name in re.findall(r"`(tests/[\w/]+(?:\.py|/))`", page.read_text())}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_each_command_of_the_table_of_conditions_runs(tmp_path, monkeypatch):
    """A run with norms by layer, and one with probes, answer every question that the table says can be asked."""
    monkeypatch.chdir(tmp_path)
    write_small_trace("run.h5", steps=12, norms=["spectral", {"encoder": "spectral", "*": "linf"}])
    simulated("probed.h5", steps=20)
    page = (ROOT / "docs" / "estimates.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`lsmooth estimate " in line]
    commands = [re.findall(r"`lsmooth (estimate [^`]+)`", row)[-1] for row in rows]
    assert len(commands) == len(set(commands)) >= 9
    for command in commands:
        done = CliRunner().invoke(main, [*shlex.split(command), "--confidence", "0"])
        assert done.exit_code == 0, f"{command}: {done.output}"
        assert re.search(r"\d", done.output), command
