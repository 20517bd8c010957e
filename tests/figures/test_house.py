"""The house style: it holds for figures that a function makes itself, and no setting stays changed."""

import matplotlib
import pytest
from drawing import empty_axes, frame

from lsmooth.figures import smoothness_scatter, style


def test_a_figure_of_its_own_is_in_the_house_style_and_the_settings_stay():
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    ax = smoothness_scatter(frame())
    assert dict(matplotlib.rcParams) == before
    ax.figure.draw_without_rendering()
    assert ax.figure.get_size_inches()[0] == pytest.approx(3.25)
    texts = [ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
    assert {text.get_fontsize() for text in texts} == {8}
    plt.close(ax.figure)


def test_a_style_of_ones_own_goes_on_top(tmp_path):
    file = tmp_path / "big.mplstyle"
    file.write_text("font.size: 11\naxes.labelsize: 12\n")
    with style(file):
        ax = smoothness_scatter(frame(), ax=empty_axes())
    assert ax.xaxis.label.get_fontsize() == 12


def test_a_notebook_that_becomes_interactive_inside_of_a_style_stays_so(monkeypatch):
    """A notebook's first figure makes matplotlib interactive; if that ended with the style, later ones were hidden."""
    monkeypatch.setitem(matplotlib.rcParams, "interactive", False)
    with style():
        matplotlib.interactive(True)
    assert matplotlib.is_interactive()
    with style():
        matplotlib.interactive(False)
    assert not matplotlib.is_interactive()
