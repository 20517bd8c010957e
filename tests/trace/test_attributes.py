"""Attributes: texts go in and come out, and nothing else than texts, numbers and arrays of them does."""

import json

import h5py
import numpy as np
import pytest
from rows import header

from lsmooth.trace.attributes import get_attribute, get_attributes, printable, put_text, read_metadata
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "any.h5", "w") as file:
        yield file


@pytest.mark.parametrize("text", ["", "plain", "é コード ﷺ", "two\nlines", "x" * 5_000])
def test_a_text_comes_out_as_it_went_in(file, text):
    put_text(file, "note", text)
    assert get_attribute(file, "note") == text
    # Under the checksum of the object, and not in HDF5's heap, which has none.
    assert not file.attrs.get_id("note").get_type().is_variable_str()


def test_numbers_come_out_as_python_has_them(file):
    file.attrs["count"] = np.int32(3)
    file.attrs["scale"] = np.float64(0.5)
    file.attrs["several"] = np.arange(3)
    found = get_attributes(file)
    assert (type(found["count"]), found["count"]) == (int, 3)
    assert (type(found["scale"]), found["scale"]) == (float, 0.5)
    np.testing.assert_array_equal(found["several"], [0, 1, 2])


def test_what_is_not_there_is_named(file):
    with pytest.raises(KeyError, match="no attribute note"):
        get_attribute(file, "note")


@pytest.mark.parametrize(
    "value",
    ["of variable length", h5py.Empty("f4"), np.array([(1, 2)], dtype="i4,i4"), 1j],
    ids=["variable", "empty", "compound", "complex"],
)
def test_other_kinds_of_attribute_are_not_read(file, value):
    file.attrs["note"] = value
    if isinstance(value, h5py.Empty):
        with pytest.raises(ValueError, match="neither a text nor a number"):
            read_metadata(file)
        return
    with pytest.raises(ValueError, match="not of a kind that traces have"):
        get_attribute(file, "note")


def test_metadata_is_decoded_where_it_is_json(file):
    put_text(file, "user_metadata", json.dumps({"tags": ["a", 1]}))
    put_text(file, "model", "{not json")
    assert read_metadata(file) == {"user_metadata": {"tags": ["a", 1]}, "model": "{not json"}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("optimizer_groups", "{}", "not a list of groups"),
        ("optimizer_groups", "[1]", "not a list of groups"),
        ("optimizer_groups", '[{"lr": "high"}]', "lr of optimizer_groups is no number"),
        ("user_metadata", "[1]", "user_metadata is no object"),
    ],
)
def test_metadata_of_another_shape_is_refused(file, name, value, reason):
    put_text(file, name, value)
    with pytest.raises(ValueError, match=reason):
        read_metadata(file)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layers.0.weight", "layers.0.weight"),
        ("コード é ﷺ", "コード é ﷺ"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\tc\rd\x00", "a\\nb\\tc\\rd\\x00"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("\u202egpj.exe\u2069", "\\u202egpj.exe\\u2069"),
        ("one\u2028two", "one\\u2028two"),
    ],
)
def test_control_characters_become_their_escapes(text, shown):
    assert printable(text) == shown


def test_texts_of_a_trace_are_without_control_characters(tmp_path):
    attributes = {
        "model": "Made\x1b[2J\nloss 0",
        "optimizer_groups": [{"lr": 0.1, "name\x07": "\x1b[31m"}],
        "user_metadata": {"note": "two\nlines\x1b"},
    }
    made = header(parameters=("a\x1b]0;x\x07", "b\n"), coordinates=1, attributes=attributes)
    TraceWriter(tmp_path / "run.h5", made).close()
    with Trace(tmp_path / "run.h5") as trace:
        assert trace.parameters == ["a\\x1b]0;x\\x07", "b\\n"]
        assert trace.coordinate_names == ["a\\x1b]0;x\\x07[0]"]
        assert trace.metadata["model"] == "Made\\x1b[2J\\nloss 0"
        assert trace.metadata["optimizer_groups"] == [{"lr": 0.1, "name\\x07": "\\x1b[31m"}]
        assert trace.metadata["user_metadata"] == {"note": "two\nlines\\x1b"}
