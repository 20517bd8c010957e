"""What a replay prints, logs and writes to files that it opens is named once, at the first measured step."""

import io
import logging
import re
import sys
import threading
import warnings

import pytest
from loops import batches, classify, mlp, seed_all, sgd

import lsmooth


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
