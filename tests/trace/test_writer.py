"""The trace's writer: modes, paths, forks, and what the system refuses."""

import errno
import os
import tempfile

import numpy as np
import pytest
from forked import read_only
from rows import assert_rows, header, rows, write_rows

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.trace.background import BackgroundWriter
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_totals_are_the_joined_norms_of_all_tensors(path):
    made = write_rows(path, 50)
    trace = Trace(path)
    for name in ("grad_norm", "step_norm", "grad_diff"):
        expected = np.sqrt(np.square(trace.read(name).astype(np.float64)).sum(axis=-1))
        np.testing.assert_allclose(trace.read(f"total_{name}"), expected, rtol=1e-14)
    by_hand = trace.cloud(dict.fromkeys(made.parameters, "all"))
    np.testing.assert_array_equal(trace.cloud("global").smoothness, by_hand.smoothness)
    np.testing.assert_array_equal(trace.cloud("global").grad_norm, by_hand.grad_norm)


def test_existing_file_is_kept_or_replaced_as_asked(path):
    made = write_rows(path, 3)
    with pytest.raises(TraceError, match=r"run.h5 exists already; choose another name, or mode='w'"):
        TraceWriter(path, made)
    assert_rows(Trace(path), made, 3)
    TraceWriter(path, made, "w").close()
    assert len(Trace(path)) == 0


def test_unknown_mode_and_missing_folder(path):
    with pytest.raises(InvalidArgumentError, match="mode='r' is none of"):
        TraceWriter(path, header(), "r")
    with pytest.raises(TraceError, match="There is no folder"):
        TraceWriter(path.parent / "nowhere" / "run.h5", header())
    assert list(path.parent.iterdir()) == []


def test_working_directory_may_change(path, monkeypatch):
    made = header()
    monkeypatch.chdir(path.parent)
    writer = TraceWriter("run.h5", made)
    monkeypatch.chdir("/")
    writer.append(rows(made, 0, 3))
    writer.close()
    assert_rows(Trace(path), made, 3)


def test_a_fork_neither_keeps_the_lock_nor_touches_the_file(path):
    made = header()
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, CHUNK_STEPS + 2))
    ends, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        # As a forked data loader's worker may outlive the recorder, and end in whatever way.
        os.read(ends, 1)
        writer.close()
        os._exit(0)
    os.close(ends)
    writer.append(rows(made, CHUNK_STEPS + 2, 2 * CHUNK_STEPS + 1))
    writer.close()
    assert Trace(path).state == "complete"
    TraceWriter(path, made, "a").close()
    os.close(go)
    os.waitpid(child, 0)
    assert_rows(Trace(path), made, 2 * CHUNK_STEPS + 1)
    assert Trace(path).state == "complete"


@pytest.mark.parametrize("number", ["EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EIO", "ESTALE"])
@pytest.mark.parametrize("mode", ["x", "w", "a"])
def test_whatever_the_system_refuses_is_no_error(tmp_path, monkeypatch, number, mode):
    made, path = header(), tmp_path / "run.h5"
    number = getattr(errno, number)
    if mode != "x":
        TraceWriter(path, made).close()
    before = bytes_in(tmp_path)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    writer = TraceWriter(path, made, mode)
    assert os.strerror(number) in writer.refusal
    background = BackgroundWriter(writer)
    background.put(lambda: (rows(made, 0, 1),))
    background.wait()
    background.close()
    assert len(background.problems()) == 1
    monkeypatch.undo()
    assert bytes_in(tmp_path) == before
    with pytest.raises(OSError, match="it is closed"):
        writer.append(rows(made, 0, 1))
    # It holds on to nothing.
    TraceWriter(path, made, "w").close()


def test_mistakes_stay_errors_where_nothing_can_be_written(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    made, path = header(), folder / "run.h5"
    TraceWriter(path, made).close()
    (folder / "torn.h5").write_bytes(path.read_bytes()[:-500])
    (folder / "folder.h5").mkdir()
    with read_only(folder):
        for name, given, mode, said in (
            ("run.h5", made, "x", "exists already"),
            ("run.h5", header(gammas=(0.5,)), "a", "its gammas are 0.25, 0.5, this run's are 0.5"),
            ("torn.h5", made, "a", "is damaged"),
            ("folder.h5", made, "w", "cannot be written (Is a directory)"),
            ("elsewhere/run.h5", made, "x", "There is no folder"),
            ("run.h5/run.h5", made, "x", "There is no folder"),
            (f"{'long' * 100}.h5", made, "x", "cannot be written (File name too long)"),
        ):
            with pytest.raises(TraceError) as caught:
                TraceWriter(folder / name, given, mode)
            assert said in str(caught.value)
    writer = TraceWriter(path, made, "w")
    path.chmod(0o666)
    with read_only(folder), pytest.raises(TraceError, match="is being written by another recorder"):
        TraceWriter(path, made, "a")
    writer.close()


@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_nothing_but_a_regular_file_is_replaced(tmp_path, mode, kind):
    """Root may replace the file of a device, such as /dev/sda: a trace never does."""
    path = tmp_path / "run.h5"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(TraceError, match=r"run.h5 is not a regular file, and is never replaced; choose another path"):
        TraceWriter(path, header(), mode=mode)
    assert [item.name for item in tmp_path.iterdir()] == ["run.h5"]
    assert not path.is_file()
