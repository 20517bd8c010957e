"""What a replay prints, logs and writes to files that it opens is named once, at the first measured step."""

import csv
import functools
import io
import logging
import multiprocessing
import os
import queue
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import warnings

import pytest
from loops import batches, classify, mlp, seed_all, sgd

import lsmooth
from lsmooth.replay import replaying


def opened(path):
    with open(path, "a") as file:
        file.write(".")


HEARD = {
    "what is printed": lambda path: print("a loss"),
    "what is logged": lambda path: logging.getLogger("own").warning("a loss"),
    "the file .*opened.txt": opened,
    "the file .*written.txt": lambda path: path.write_text("."),
}
NAMES = {"the file .*opened.txt": "opened.txt", "the file .*written.txt": "written.txt"}


def told(apply, path, *, watched=False, hook=False):
    """Train three steps, the loss or a hook doing something beside; return the warnings."""
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    if hook:
        model[0].weight.register_hook(lambda _: apply() and None)

    def loss(x, y):
        if not hook:
            apply()
        return classify(model, x, y)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # From Python 3.13 on, databases of earlier tests warn when they are collected.
        warnings.simplefilter("ignore", ResourceWarning)
        with lsmooth.Recorder(model, optimizer, path) as recorder:
            compute = recorder.watch(loss) if watched else loss
            for x, y in batches(3):
                optimizer.zero_grad()
                if watched:
                    compute(x, y).backward()
                else:
                    recorder.backward(lambda: loss(x, y))  # noqa: B023
                optimizer.step()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("what", HEARD)
def test_it_is_named_once(what, hook, watched, tmp_path, capsys):
    before = sys.stdout, logging.getLogRecordFactory(), open, io.open
    path = tmp_path / NAMES.get(what, "other.txt")
    (said,) = told(lambda: HEARD[what](path), tmp_path / "run.h5", watched=watched, hook=hook)
    assert re.search(f"has changed {what}, which is not put back", said)
    assert (sys.stdout, logging.getLogRecordFactory(), open, io.open) == before


def to_table(folder):
    file = open(folder / "rows.csv", "w", newline="")  # noqa: SIM115
    rows = csv.writer(file)
    return lambda: rows.writerow([1])


def to_database(folder):
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE seen (step)")
    return lambda: database.execute("INSERT INTO seen VALUES (1)")


def by_cursor(folder):
    database = sqlite3.connect(":memory:", isolation_level=None)
    cursor = database.cursor()
    cursor.execute("CREATE TABLE seen (step)")
    return lambda: cursor.executemany("INSERT INTO seen VALUES (?)", [(1,)])


def to_socket(folder):
    ours, theirs = socket.socketpair()
    return lambda: ours.send(b".") + theirs.fileno()


def to_pipe(folder):
    _, end = os.pipe()
    return lambda: os.write(end, b".")


def to_other_process(folder):
    other, end = multiprocessing.Pipe(duplex=False)
    return lambda: end.send(other.closed)


def to_simple_queue(folder):
    numbers = queue.SimpleQueue()
    return lambda: numbers.put(1)


def to_file_out_of_reach(folder):
    # The items of long dicts are not looked at.
    files = dict.fromkeys(range(100))
    files[0] = open(folder / "far.txt", "w")  # noqa: SIM115
    return lambda: files[0].write(".")


def moved(folder):
    (folder / "a").touch()

    def swap():
        for one, other in (("a", "c"), ("c", "a")):
            os.rename(folder / one, folder / other)

    return swap


# What is made before training, and how the loss uses it.
WRITTEN = {
    "what is printed": lambda folder: lambda: print("a loss", file=sys.stderr),
    r"a _csv\.writer": to_table,
    r"a sqlite3\.Connection": to_database,
    "a sqlite3.Connection": by_cursor,
    r"a socket\.socket": to_socket,
    r"what os\.write changes": to_pipe,
    "what os.write changes": to_other_process,
    "the file .*far.txt": to_file_out_of_reach,
    r"what os\.rename changes": moved,
    r"a queue\.Queue": lambda folder: functools.partial(queue.Queue().put, 1),
    r"a _queue\.SimpleQueue": to_simple_queue,
    r"a subprocess\.Popen": lambda folder: lambda: subprocess.run([sys.executable, "-c", ""], check=True),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_what_is_written_and_sent_is_named_once(what, tmp_path):
    before = sys.stderr
    (said,) = told(WRITTEN[what](tmp_path), tmp_path / "run.h5")
    assert re.search(f"has changed {what},", said)
    assert sys.stderr is before
    assert sys.getprofile() is None


def reads(folder):
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE rates AS SELECT 1")
    return lambda: database.execute("SELECT * FROM rates").fetchall()


def unless_replayed(numbers):
    if not replaying():
        numbers.put(1)


QUIET = {
    "database that is read": reads,
    "text of the loss's own": lambda folder: lambda: io.StringIO().write("."),
    "other functions of these names": lambda folder: lambda: "a".replace("a", "b") + str([1].remove(1)),
    "queue of the loop": lambda folder: functools.partial(unless_replayed, queue.Queue()),
}


@pytest.mark.parametrize("what", QUIET)
def test_what_changes_nothing_outside_is_not_named(what, tmp_path):
    assert told(QUIET[what](tmp_path), tmp_path / "run.h5") == []


def test_the_users_own_profiler_goes_on(tmp_path):
    calls = []

    def own(frame, event, arg):
        calls.append(event)

    sys.setprofile(own)
    try:
        said = told(to_pipe(tmp_path), tmp_path / "run.h5")
        assert sys.getprofile() is own
    finally:
        sys.setprofile(None)
    assert said == []


def test_files_that_are_read_are_not_named(tmp_path):
    path = tmp_path / "read.txt"
    path.write_text("1")
    assert told(path.read_text, tmp_path / "run.h5") == []


def test_what_other_threads_print_is_none_of_the_loss(tmp_path, capsys):
    started, done = threading.Event(), threading.Event()

    def chatter():
        while not done.wait(0.001):
            print("meanwhile")
            logging.getLogger("own").debug("meanwhile")
            started.set()

    thread = threading.Thread(target=chatter)
    thread.start()
    started.wait()
    try:
        assert told(lambda: None, tmp_path / "run.h5") == []
    finally:
        done.set()
        thread.join()
    assert "meanwhile" in capsys.readouterr().out


def test_a_stream_in_the_place_of_another_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    own = io.StringIO()

    def take_over():
        if sys.stdout.getvalue() == "":
            sys.stdout.write(".")
        sys.stdout = own

    own.write("-")
    told(take_over, tmp_path / "run.h5")
    assert sys.stdout is own


def test_a_process_without_a_stream_is_none_the_worse(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert told(lambda: None, tmp_path / "run.h5") == []
