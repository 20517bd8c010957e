"""A new file: whole from the moment it has its name, which it takes from nobody."""

from pathlib import Path

import h5py
import pytest
from rows import assert_rows, header, rows

from lsmooth.errors import TraceError
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.mark.parametrize("mode", ["x", "w", "a"])
def test_first_to_name_a_file_keeps_it(path, mode, monkeypatch):
    """Two processes find no file at the path; while the second writes its own, the first puts one there."""
    made = header()
    real = h5py.File

    def overtaken(*arguments, **others):
        if not path.exists():
            monkeypatch.setattr(h5py, "File", real)
            first.append(TraceWriter(path, made))
        return real(*arguments, **others)

    first = []
    monkeypatch.setattr(h5py, "File", overtaken)
    with pytest.raises(TraceError, match="exists already"):
        TraceWriter(path, made, mode)
    first[0].append(rows(made, 0, 3))
    first[0].close()
    assert_rows(Trace(path), made, 3)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_file_that_hdf5_takes_for_one_it_has_open_is_not_used(path, monkeypatch):
    """The number of a deleted file, which HDF5 was made to leave open, goes to the next file."""
    made = header()
    real, refused = h5py.File, []

    def first_refused(name, *arguments, **others):
        if len(refused) < 2:
            refused.append(Path(name))
            raise OSError("Unable to synchronously create file (unable to truncate a file which is already open)")
        assert all(other.exists() for other in refused)
        return real(name, *arguments, **others)

    monkeypatch.setattr(h5py, "File", first_refused)
    writer = TraceWriter(path, made)
    monkeypatch.undo()
    writer.append(rows(made, 0, 3))
    writer.close()
    assert_rows(Trace(path), made, 3)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_link_to_a_file_elsewhere_stays_a_link(path, tmp_path):
    (tmp_path / "disk").mkdir()
    path.symlink_to(tmp_path / "disk" / "run.h5")
    made = header()
    TraceWriter(path, made).close()
    TraceWriter(path, made, "w").close()
    assert path.is_symlink()
    assert len(Trace(tmp_path / "disk" / "run.h5")) == 0


@pytest.mark.parametrize("mode", ["x", "w", "a"])
@pytest.mark.parametrize("letter", ["n", "é", "層"])
def test_a_name_may_be_as_long_as_the_system_permits(path, letter, mode):
    """Names have up to 255 bytes; the file's temporary name must not need more."""
    path = path.with_name(letter * (252 // len(letter.encode())) + ".h5")
    made = header()
    if mode != "x":
        TraceWriter(path, made).close()
    writer = TraceWriter(path, made, mode)
    writer.append(rows(made, 0, 3))
    writer.close()
    assert_rows(Trace(path), made, 3)
    assert list(path.parent.iterdir()) == [path]
