"""One writer a file, in one process and in several; readers keep nobody out."""

import subprocess
import sys
from pathlib import Path

import pytest
from rows import assert_rows, header, rows

from lsmooth.errors import TraceError
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def written(path, count, **others):
    made = header(**others)
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, count))
    writer.close()
    return made


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
    made = written(path, 3)
    with Trace(path) as trace:
        assert trace.state == "complete"
        writer = TraceWriter(path, made, "a")
        assert trace.state == "being written"
        writer.close()
