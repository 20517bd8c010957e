"""One writer a file, in one process and in several; readers keep nobody out."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from rows import assert_rows, header, rows, write_rows

from lsmooth.errors import TraceError
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.mark.parametrize("mode", ["w", "a"])
def test_second_writer_in_the_same_process_is_refused(path, mode):
    made = header()
    writer = TraceWriter(path, made)
    with pytest.raises(TraceError, match="is being written by another recorder"):
        TraceWriter(path, made, mode)
    writer.append(rows(made, 0, 5))
    writer.close()
    assert_rows(Trace(path), made, 5)
    TraceWriter(path, made, mode).close()


def test_second_process_is_refused_in_one_sentence(path):
    made = header()
    writer = TraceWriter(path, made)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from rows import header; "
        "from lsmooth.trace.writer import TraceWriter\n"
        "try: TraceWriter(sys.argv[2], header(), 'a')\n"
        "except Exception as error: print(error)"
    )
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", code, tests, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == f"{path} is being written by another recorder; close it or wait for it to end, or choose another name.\n"
    )
    writer.append(rows(made, 0, 3))
    writer.close()
    assert_rows(Trace(path), made, 3)
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_reading_does_not_stand_in_a_writers_way(path):
    made = write_rows(path, 3)
    with Trace(path) as trace:
        assert trace.state == "complete"
        writer = TraceWriter(path, made, "a")
        assert trace.state == "being written"
        writer.close()


# --- systems and file systems with other locks, or none ---

WITHOUT_FCNTL = """
import sys, types, warnings
import fcntl as real
import pandas  # asks for msvcrt itself to know Windows by it
sys.modules["fcntl"] = None
if sys.argv[3] == "msvcrt":
    # Windows locks the bytes at a descriptor's place, of which this makes one file lock.
    import os
    LK_UNLCK, LK_NBLCK = 0, 2

    def locking(descriptor, kind, count):
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        flags = real.F_UNLCK if kind == LK_UNLCK else real.F_RDLCK if not writable(descriptor) else real.F_WRLCK
        import struct
        real.fcntl(descriptor, real.F_OFD_SETLK, struct.pack("hhqqi4x", flags, os.SEEK_SET, place, count, 0))

    def writable(descriptor):
        return real.fcntl(descriptor, real.F_GETFL) & os.O_ACCMODE != os.O_RDONLY

    sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_UNLCK=LK_UNLCK, LK_NBLCK=LK_NBLCK)
sys.path.insert(0, sys.argv[1])
from rows import assert_rows, header, rows, write_rows
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

made = header()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    writer = TraceWriter(sys.argv[2], made)
    writer.append(rows(made, 0, 40))
    print(Trace(sys.argv[2]).state)
    try:
        TraceWriter(sys.argv[2], made, "a").abandon()
        print("a second writer")
    except Exception as error:
        print(error)
    writer.append(rows(made, 40, 41))
    writer.close()
with Trace(sys.argv[2]) as trace:
    assert_rows(trace, made, 41)
    print(trace.state)
print(*{str(warning.message) for warning in told}, sep="\\n")
"""


def without_fcntl(path, locks):
    command = [sys.executable, "-c", WITHOUT_FCNTL, str(Path(__file__).parents[1]), str(path), locks]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_windows_locks_where_there_is_no_fcntl(path):
    assert without_fcntl(path, "msvcrt") == [
        "being written",
        f"{path} is being written by another recorder; close it or wait for it to end, or choose another name.",
        "complete",
        "",
    ]


def test_without_any_locks_a_warning_says_that_nothing_keeps_a_second_recorder_out(path):
    state, second, end, *told = without_fcntl(path, "none")
    assert (state, second, end) == ("cut off", "a second writer", "complete")
    assert all("has no file locks that are known here" in warning for warning in told)
    assert all("nothing keeps a second recorder from writing to it; give each run" in warning for warning in told)
    assert told


def refuse_flock(monkeypatch, number):
    """As on file systems without HDF5's own lock."""
    real, opened = h5py.File, []

    def file(name, *arguments, locking=None, **others):
        if locking is not False:
            raise OSError(
                f"Unable to synchronously open file (unable to lock file, errno = {number}, error message = "
                f"'{os.strerror(number)}')"
            )
        opened.append(name)
        return real(name, *arguments, locking=locking, **others)

    monkeypatch.setattr(h5py, "File", file)
    return opened


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_hdf5s_own_lock_is_written_and_read(path, monkeypatch, number):
    opened = refuse_flock(monkeypatch, number)
    made = write_rows(path, 40)
    with Trace(path) as trace:
        assert_rows(trace, made, 40)
        assert trace.state == "complete"
    writer = TraceWriter(path, made, "a")
    writer.append(rows(made, 40, 50))
    writer.close()
    assert len(opened) >= 4
    monkeypatch.undo()
    assert_rows(Trace(path), made, 50)


def test_other_tools_and_readers_of_the_same_process_may_have_it_open_at_once(path):
    write_rows(path, 40)
    with Trace(path), h5py.File(path) as file, Trace(path) as trace:
        assert len(file["step"]) == len(trace) == 40
