"""Which file each training of a callback is recorded in."""

import warnings

import pytest

from lsmooth.integrations.successive import SuccessivePaths


def trained(paths, ending="ended", *, resumed=False):
    """Go through a training; return the name of its file and the recorder's mode."""
    path, mode = paths.begin(resumed=resumed)
    paths.begun(path, resumed=resumed)
    if ending == "ended":
        paths.ended()
    return path, mode


def test_an_attempt_that_failed_is_taken_over_without_a_word():
    paths = SuccessivePaths("run.h5", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained(paths, "failed") == ("run.h5", "x")
        assert trained(paths, "failed") == ("run.h5", "w")
        assert trained(paths) == ("run.h5", "w")


def test_one_that_came_to_its_end_keeps_its_file():
    paths = SuccessivePaths("a/run.h5", "x")
    assert trained(paths) == ("a/run.h5", "x")
    with pytest.warns(UserWarning, match=r"a/run\.h5 holds .* is recorded in a/run-2\.h5\."):
        assert trained(paths, "failed") == ("a/run-2.h5", "x")
    assert trained(paths) == ("a/run-2.h5", "w")
    with pytest.warns(UserWarning, match=r"a/run-2\.h5 holds .* is recorded in a/run-3\.h5\."):
        assert trained(paths) == ("a/run-3.h5", "x")


def test_a_resumed_one_goes_on_where_the_last_was():
    paths = SuccessivePaths("run.h5", "x")
    assert trained(paths, resumed=True) == ("run.h5", "a")
    with pytest.warns(UserWarning, match="run-2"):
        assert trained(paths) == ("run-2.h5", "x")
    assert trained(paths, resumed=True) == ("run-2.h5", "a")


def test_a_file_that_is_to_be_replaced_is():
    paths = SuccessivePaths("run.h5", "w")
    assert [trained(paths) for _ in range(2)] == [("run.h5", "w")] * 2


def test_a_recorder_that_could_not_be_made_changes_nothing():
    paths = SuccessivePaths("run.h5", "x")
    assert paths.begin(resumed=False) == ("run.h5", "x")
    assert paths.begin(resumed=False) == ("run.h5", "x")
