"""The table of methods."""

from pathlib import Path

import pytest
from known_clouds import made_cloud

import lsmooth
from lsmooth import fit
from lsmooth.fit.methods import METHODS


def test_an_unknown_method_is_refused():
    with pytest.raises(lsmooth.LsmoothError, match="did you mean envelope"):
        fit.estimate(made_cloud(), method="envelop")


def test_the_page_has_the_table_of_methods():
    page = (Path(__file__).parents[2] / "docs" / "estimates.md").read_text()
    for method in METHODS.values():
        assert f"| `{method.name}` | {method.meaning} | {method.formula} | {method.found} |" in page
