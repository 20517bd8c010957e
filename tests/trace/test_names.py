"""Names along a dimension: characters since format 1.2, texts of fixed length before."""

import h5py
import numpy as np
import pytest

from lsmooth.trace.names import create_names, read_names

NAMES = ["a", "layers.0.weight", "コード", "é"]


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "any.h5", "w") as file:
        yield file


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
@pytest.mark.parametrize("names", [NAMES, ["one"], ["x" * 248, "y"]], ids=["several", "one", "long"])
def test_names_come_out_as_they_went_in(file, names, version):
    assert read_names(create_names(file, "parameter", names, version, {})) == names


def test_the_newest_format_keeps_characters_and_says_their_encoding(file):
    dataset = create_names(file, "parameter", NAMES, "1.2", {})
    assert dataset.dtype == "S1"
    assert dataset.shape == (4, max(len(name.encode()) for name in NAMES))
    assert dataset.attrs["_Encoding"] == b"utf-8"
    assert dataset.is_scale
    assert create_names(file, "older", NAMES, "1.1", {}).shape == (4,)


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_a_name_twice_is_refused(file, version):
    with pytest.raises(ValueError, match="/parameter has a name twice"):
        read_names(create_names(file, "parameter", ["a", "b", "a"], version, {}))


def test_names_that_become_equal_when_they_are_shown_are_refused(file):
    with pytest.raises(ValueError, match="a name twice"):
        read_names(create_names(file, "parameter", ["a\n", "a\\n"], "1.2", {}))


def test_bytes_that_are_no_text_are_refused(file):
    dataset = create_names(file, "parameter", ["ab"], "1.2", {})
    dataset[:] = np.array([[b"\xff", b"a"]])
    with pytest.raises(ValueError, match="utf-8"):
        read_names(dataset)
