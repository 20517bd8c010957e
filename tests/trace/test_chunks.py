"""Chunks that a file counts and does not hold: HDF5 would make up zeros for them."""

import h5py
import numpy as np
import pytest

from lsmooth.trace.chunks import all_chunks_within, check_chunks

ROWS = 96


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "any.h5", "w") as file:
        file.create_dataset("whole", data=np.ones((ROWS, 3)), chunks=(32, 2), maxshape=(None, 3))
        holed = file.create_dataset("holed", shape=(ROWS, 3), dtype="f8", chunks=(32, 2), maxshape=(None, 3))
        holed[:64] = 1
        holed[64:, :2] = 1
        file.flush()
        yield file


@pytest.mark.parametrize("by_number", [False, True])
def test_a_dataset_that_lacks_a_chunk_is_refused_by_name(file, by_number):
    check_chunks(file, ["whole"], ROWS, by_number=by_number)
    np.testing.assert_array_equal(file["holed"][64:, 2], 0)
    with pytest.raises(ValueError, match="holed lacks rows that it counts"):
        check_chunks(file, ["whole", "holed"], ROWS, by_number=by_number)


@pytest.mark.parametrize("rows", [0, 1, 32, 63, 64])
def test_of_a_growing_file_only_the_rows_that_count_are_asked_for(file, rows):
    check_chunks(file, ["holed"], rows, by_number=False)


def test_chunks_beyond_the_end_of_a_file_are_noticed(file):
    size = file.id.get_filesize()
    assert all_chunks_within([file["whole"], file["holed"]], size)
    last = max(file["holed"].id.get_chunk_info(i).byte_offset for i in range(file["holed"].id.get_num_chunks()))
    assert not all_chunks_within([file["whole"], file["holed"]], last + 1)
