"""The table of figures: each kind refuses in a sentence what it does not have, before anything is drawn."""

import re
import subprocess
import sys

import pytest

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.kinds import KINDS, Options, check_options


def refusal(kind, count=1, **options):
    """Return what is said of some traces and options; "" where they are taken."""
    try:
        check_options(kind, [object()] * count, Options(**options))
    except InvalidArgumentError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_says_what_it_does_not_take(name):
    kind = KINDS[name]
    assert refusal(name) == ""
    assert bool(refusal(name, count=2)) == (not kind.several)
    assert bool(refusal(name, by="module")) == (kind.by is None)
    assert bool(refusal(name, linear=True)) == (not kind.linear)
    assert bool(refusal(name, norm="linf")) == (not kind.norm)
    assert bool(refusal(name, marginals=True)) == (not kind.marginals)
    assert refusal(name, count=2, marginals=True)


@pytest.mark.parametrize(
    ("options", "taken"), [({"count": 2}, "several"), ({"by": "module"}, "by")], ids=["several", "by"]
)
def test_a_refusal_names_the_kinds_that_take_it(options, taken):
    sentence = refusal("density", **options)
    named = re.findall(r"\w+", sentence)
    assert {name for name, kind in KINDS.items() if getattr(kind, taken)} <= set(named)


def test_the_table_loads_no_drawing_library():
    code = "import sys, lsmooth.figures.kinds; assert not {'matplotlib', 'seaborn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
