"""What HDF5 keeps without a checksum of its own is under the header's."""

import pytest
from rows import header, rows

from lsmooth.errors import TraceError
from lsmooth.trace.density import GRAD_DECADES, edges
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


def refused(path, data, at):
    """Say whether a file with one bit changed is refused."""
    changed = bytearray(data)
    changed[at] ^= 1
    path.write_bytes(changed)
    with pytest.raises(TraceError, match="header cannot be read"):
        Trace(path)
    return True


def test_texts_of_more_than_64_kib_are_under_the_checksum(tmp_path):
    """HDF5 keeps attributes of that size in a place of their own. Four thousand tensors' shapes are as long."""
    made = header(attributes={"parameter_shapes": [[1024, 1024]] * 8000, "model": "Made"})
    path = tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 40))
    writer.close()
    data = path.read_bytes()
    at = data.index(b"[1024, 1024], " * 6000)
    assert all(refused(path, data, at + 14 * place + 2) for place in (0, 3000, 5999))


def test_edges_of_densities_are_under_the_checksum(tmp_path):
    path = tmp_path / "run.h5"
    TraceWriter(path, header(densities=True)).close()
    data = path.read_bytes()
    at = data.index(edges(GRAD_DECADES).astype("<f8").tobytes())
    assert all(refused(path, data, at + place) for place in (0, 100, 700))
