"""Eight readers beside one writer, started by fork or spawn, before and after it has opened its file: no wrong row."""

import multiprocessing
import time

import numpy as np
import pytest
from rows import header, rows

from lsmooth.errors import TraceError
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

READERS = 8
STEPS = 12 * CHUNK_STEPS
PARAMETERS = [f"p{i}" for i in range(40)]


NAMES = ("step", "loss", "grad_diff", "status", "coordinate/grad")


def differs(found, expected):
    return not np.array_equal(found, expected.astype(found.dtype))


def read_until_complete(path, ready, answers):
    """Read a trace over and over; say how often, how many lengths it had, and what was wrong."""
    truth = rows(header(parameters=PARAMETERS), 0, STEPS)
    lengths, wrong, looks = [], [], 0
    end = time.monotonic() + 120
    state = ""
    ready.wait()
    while state != "complete" and time.monotonic() < end and not wrong:
        try:
            with Trace(path) as trace:
                state, count = trace.state, len(trace)
                wrong += [f"{name} of {count} rows" for name in NAMES if differs(trace.read(name), truth[name][:count])]
        except TraceError as error:
            if "There is no file" not in str(error):
                wrong.append(str(error))
            continue
        looks += 1
        if lengths and count < lengths[-1]:
            wrong.append(f"{count} rows after {lengths[-1]}")
        lengths.append(count)
    answers.put((looks, len(set(lengths)), lengths[-1:], state, wrong))


@pytest.mark.parametrize("late", [False, True], ids=["before the writer", "after the writer"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_no_reader_sees_a_wrong_row(method, late, tmp_path):
    made, path = header(parameters=PARAMETERS), tmp_path / "run.h5"
    context = multiprocessing.get_context(method)
    answers, ready = context.Queue(), context.Barrier(READERS + 1)
    readers = [context.Process(target=read_until_complete, args=(path, ready, answers)) for _ in range(READERS)]
    writer = None
    if late:
        writer = TraceWriter(path, made)
        writer.append(rows(made, 0, 7))
    for reader in readers:
        reader.start()
    ready.wait(timeout=120)
    writer = writer or TraceWriter(path, made)
    done = 7 if late else 0
    while done < STEPS:
        count = min(STEPS - done, 11)
        writer.append(rows(made, done, done + count))
        done += count
        time.sleep(0.05)
    writer.close()
    found = [answers.get(timeout=150) for _ in readers]
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
    for looks, lengths, last, state, wrong in found:
        assert wrong == []
        assert (last, state) == ([STEPS], "complete")
        assert looks >= lengths > 0
    # Some looked while it grew.
    assert max(lengths for _, lengths, *_ in found) > 1
