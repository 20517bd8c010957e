"""Names in fewer letters, and what the letters stand for."""

import subprocess
import sys
from itertools import pairwise

import pytest

from lsmooth.figures.abbreviations import abbreviations, explain

LONG = "transformer.encoder.layers.11.self_attn.in_proj_weight_with_a_long_name[1023, 767]"


@pytest.mark.parametrize("name", [LONG, "weight", "layers.0.weight", "a..b", "blocks12.3x.conv2d"])
def test_each_form_is_shorter_or_the_same_and_ends_as_the_name_does(name):
    forms = list(abbreviations(name))
    assert forms[0] == name
    assert all(len(later) <= len(earlier) for earlier, later in pairwise(forms))
    assert {form.rpartition(".")[2] for form in forms} == {name.rpartition(".")[2]}
    assert {form.count(".") for form in forms} == {name.count(".")}


def test_what_abbreviations_stand_for_is_said_once():
    names = ["encoder.layers.0.linear1", "encoder.layers.10.linear2", "decoder.lin_out"]
    pairs = [(name, list(abbreviations(name))[-1]) for name in names]
    assert [short for _, short in pairs] == ["e.l.0.linear1", "e.l.10.linear2", "d.lin_out"]
    assert explain(pairs) == "e=encoder, l=layers, d=decoder"
    assert explain([("a2.b", "a2.b"), ("blocks12.x", "b12.x"), ("base.x", "b.x")]) == "b=blocks|base"
    assert explain([(LONG, "…")]) == ""


def test_tables_need_no_drawing_library():
    code = "import sys, lsmooth.figures.abbreviations; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
