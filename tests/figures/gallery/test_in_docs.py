"""The gallery's pictures in the documentation: found by mkdocs where pages name them."""

import importlib.util
from pathlib import Path

GALLERY = Path(__file__).parents[3] / "figures" / "gallery"


def load(name):
    spec = importlib.util.spec_from_file_location(name, GALLERY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_find_the_pictures_in_the_site():
    in_docs = load("in_docs")
    page = in_docs.on_page_markdown("![a](../figures/gallery/a.png) ../figures/other")
    assert page == "![a](gallery/a.png) ../figures/other"
