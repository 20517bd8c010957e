"""The first bytes of a file: their checksum, the writer's mark, and where the file ends."""

import os
import shutil

import h5py
import numpy as np
import pytest

from lsmooth.trace.superblock import (
    Mended,
    file_state,
    lookup3,
    missing_bytes,
    needs_mending,
    state_end,
    stated_end,
)

SIZE = 48


@pytest.fixture
def marked(tmp_path):
    """A copy of a file that is being written: it carries the writer's mark."""
    with h5py.File(tmp_path / "growing.h5", "w", libver="latest") as file:
        file.create_dataset("values", data=np.arange(1_000), chunks=(100,), maxshape=(None,))
        file.swmr_mode = True
        file["values"].resize((1_100,))
        file["values"][1_000:] = 7
        file.flush()
        shutil.copy(tmp_path / "growing.h5", tmp_path / "copy.h5")
    return tmp_path / "copy.h5"


def test_the_checksum_is_that_of_its_author():
    """The example that stands in lookup3.c."""
    assert lookup3(b"Four score and seven years ago") == 0x17770551


def test_the_checksum_is_that_of_hdf5(marked):
    head = marked.read_bytes()[:SIZE]
    assert lookup3(head[:-4]) == int.from_bytes(head[-4:], "little")


def test_a_file_with_the_mark_is_refused_by_hdf5_and_read_without_it(marked):
    before = marked.read_bytes()
    assert needs_mending(marked)
    with pytest.raises(OSError, match="open"):
        h5py.File(marked, "r")
    with Mended(marked) as raw, h5py.File(raw, "r") as file:
        np.testing.assert_array_equal(file["values"][-101:], [999, *[7] * 100])
    assert marked.read_bytes() == before


def test_a_writer_takes_the_mark_off_and_states_the_end(marked):
    size = marked.stat().st_size
    with open(marked, "r+b") as file:
        state_end(file.fileno(), size)
        assert stated_end(file.fileno()) == size
    assert not needs_mending(marked)
    with h5py.File(marked, "r") as file:
        assert len(file["values"]) == 1_100


def test_what_is_no_such_file_is_left_as_it_is(tmp_path):
    path = tmp_path / "note.txt"
    path.write_bytes(b"a note, and longer than a superblock, so that all of one could be in it")
    before = path.read_bytes()
    with open(path, "r+b") as file:
        state_end(file.fileno(), 10)
    assert path.read_bytes() == before
    assert not needs_mending(path)
    assert missing_bytes(path) is None


@pytest.mark.parametrize("kept", [0, 20, SIZE, 1_000])
def test_a_file_that_was_cut_off_says_how_much_is_missing(marked, kept):
    with open(marked, "r+b") as file:
        state_end(file.fileno(), marked.stat().st_size)
    whole = marked.stat().st_size
    assert missing_bytes(marked) is None
    os.truncate(marked, kept)
    assert missing_bytes(marked) == (kept, whole if kept >= SIZE else SIZE)


def test_the_state_changes_with_the_file_and_with_another_in_its_place(marked, tmp_path):
    first = file_state(marked)
    assert file_state(marked) == first
    shutil.copy(marked, tmp_path / "other.h5")
    os.replace(tmp_path / "other.h5", marked)
    assert file_state(marked) != first
    assert file_state(tmp_path / "none.h5") is None
    os.mkfifo(tmp_path / "pipe")
    assert file_state(tmp_path / "pipe") is None
