"""What is opened, and what is refused: an error of the system is told as such, and is not called damage."""

import errno
import os

import h5py
import pytest
from rows import header, rows

from lsmooth.errors import TraceError
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.fixture
def path(tmp_path):
    made = header()
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, 40))
    writer.close()
    return tmp_path / "run.h5"


def as_hdf5_says_it(number):
    return OSError(
        f"Unable to synchronously open file (file read failed, errno = {number}, error message = "
        f"'{os.strerror(number)}', buf = 0x1)"
    )


def as_the_system_says_it(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("made", [as_hdf5_says_it, as_the_system_says_it])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.EAGAIN, errno.ENOMEM])
def test_what_the_system_refuses_is_not_called_damage(path, monkeypatch, made, number):
    def refuse(*_, **__):
        raise made(number)

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(TraceError) as caught:
        Trace(path)
    assert str(caught.value) == f"{path} cannot be read: {os.strerror(number)}."
    monkeypatch.undo()
    with Trace(path) as trace:
        monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
        with pytest.raises(TraceError) as caught:
            trace.read("loss")
    assert str(caught.value) == f"{path} cannot be read: {os.strerror(number)}."


def test_addresses_beyond_the_file_are_damage(path, monkeypatch):
    """HDF5 quotes the system there too, which refuses to read at such places."""

    def refuse(*_, **__):
        raise as_hdf5_says_it(errno.EINVAL)

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(TraceError, match="is damaged and cannot be opened"):
        Trace(path)


def test_a_trace_whose_attributes_are_damaged_is_not_taken_for_another_file(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"lsmooth-trace")] ^= 1
    path.write_bytes(data)
    with pytest.raises(TraceError, match="is damaged or incomplete: header cannot be read"):
        Trace(path)
