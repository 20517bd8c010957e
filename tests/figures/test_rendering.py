"""Files of figures: what fonts or style lack is said in one sentence."""

import warnings

import pytest
from drawing import empty_axes, frame

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import smoothness_panels, style
from lsmooth.figures.rendering import empty_figure, missing_glyphs_told_once, render


def test_letters_that_the_font_lacks_are_one_warning():
    with style({"font.family": ["DejaVu Sans"]}), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with missing_glyphs_told_once():
            figure = empty_figure()
            smoothness_panels([frame(group="層.a"), frame(group="語.b")], figure=figure, panels=4)
            warnings.warn("of something else", stacklevel=1)
            assert render(figure, ".png").startswith(b"\x89PNG")
    lacking, other = sorted((str(warning.message) for warning in told), key=len, reverse=True)
    assert lacking.startswith("The font DejaVu Sans lacks ")
    assert "層 (U+5C64)" in lacking
    assert "語 (U+8A9E)" in lacking
    assert lacking.count("U+") == 2
    assert other == "of something else"


def test_latex_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with style({"text.usetex": True, "font.family": ["serif"]}):
        ax = empty_axes()
        ax.set_title("a title that no cache of LaTeX has: 8d1f0c")
        with pytest.raises(InvalidArgumentError, match=r"text.usetex.*install LaTeX") as raised:
            render(ax.figure, ".png")
    assert "\n" not in str(raised.value)


def test_another_error_is_not_taken_for_one_of_latex(monkeypatch):
    ax = empty_axes()
    monkeypatch.setattr(ax, "draw", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        render(ax.figure, ".png")


def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_drawn(monkeypatch):
    figure = empty_figure()
    figure.set_size_inches(50, 40)
    figure.add_subplot()
    monkeypatch.setattr(figure, "savefig", lambda content, **_: content.write(b"drawn"))
    with pytest.raises(InvalidArgumentError, match=r"50x40 inches at 2400 dots an inch are 11,520 million pixels, and"):
        render(figure, ".png", 2400)
    with style(), pytest.raises(InvalidArgumentError, match="50x40 inches at 300 dots an inch are 180 million"):
        render(figure, ".png")
    # 100 million are allowed, and other formats are drawn in lines.
    assert render(figure, ".PNG", 223) == render(figure, ".pdf", 2400) == b"drawn"
