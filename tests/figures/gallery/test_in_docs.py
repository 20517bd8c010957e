"""The gallery's pictures in the documentation: found by mkdocs where pages name them."""


def test_pages_find_the_pictures_in_the_site(load_from_gallery):
    in_docs = load_from_gallery("in_docs")
    page = in_docs.on_page_markdown("![a](../figures/gallery/a.png) ../figures/other")
    assert page == "![a](gallery/a.png) ../figures/other"
