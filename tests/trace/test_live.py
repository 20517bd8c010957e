"""A trace that another process writes at this moment: every command reads it, and so does a copy made meanwhile."""

import json
import os
import random
import signal
import time

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from rows import assert_rows, header, rows

from lsmooth.cli import main
from lsmooth.errors import TraceError
from lsmooth.trace import opening, superblock
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.fixture
def live(trainer, tmp_path):
    """Path of the trace of a run that goes on, with a hundred steps in it."""
    path = tmp_path / "run.h5"
    child = trainer.start(path=path, steps=10**6, block_seconds=0.05)
    end = time.monotonic() + 60
    while not path.exists() or len(Trace(path)) < 100:
        assert time.monotonic() < end
        time.sleep(0.02)
    yield path
    os.kill(child, signal.SIGKILL)
    assert trainer.end() == -signal.SIGKILL


def run(*arguments):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_commands_read_a_run_that_goes_on(live, tmp_path):
    counts = []
    for _ in range(5):
        facts = json.loads(run("info", live, "--json"))
        assert facts["state"] == "being written"
        assert facts["last_step"] == facts["measured_steps"] - 1
        counts.append(facts["measured_steps"])
        time.sleep(0.06)
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] >= 100
    assert "being written" in run("info", live).splitlines()[0]

    estimates = json.loads(run("estimate", live, "--json", "--confidence", 0))["estimates"]
    assert all(estimate["L0"] >= 0 for estimate in estimates)
    run("plot", live, "-o", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    run("export", live, "-o", tmp_path / "run.csv")
    assert len((tmp_path / "run.csv").read_text().splitlines()) > counts[-1]
    lines = run("tail", live, "--no-follow", "-n", 3).splitlines()
    assert len(lines) >= 4
    assert int(lines[-1].split()[0]) >= counts[-1]


def test_tail_follows_another_process_to_its_end(trainer, tmp_path):
    path = tmp_path / "run.h5"
    trainer.start(path=path, steps=150, block_seconds=0.02)
    while not path.exists():
        time.sleep(0.002)
    lines = run("tail", path, "-n", 10**6, "--interval", 0.05).splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == list(range(150))
    assert trainer.end() == 0
    with Trace(path) as trace:
        assert trace.state == "complete"


# --- looked at while it is being changed ---


class Elsewhere:
    """A writer in another process, which does as it is told: HDF5 shares what it knows of a file within a process."""

    def __init__(self, path, made):
        self._answers, answer = os.pipe()
        order, self._orders = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._orders)
            code = 1
            try:
                writer = TraceWriter(path, made)
                os.write(answer, b"!")
                done = 0
                while word := os.read(order, 8):
                    count = int(word)
                    if count:
                        writer.append(rows(made, done, done + count))
                    else:
                        writer.close()
                    done += count
                    os.write(answer, b"!")
                code = 0
            finally:
                os._exit(code)
        os.close(order)
        os.close(answer)
        assert os.read(self._answers, 1) == b"!"

    def append(self, count):
        """Append rows; 0 closes the trace."""
        os.write(self._orders, b"%8d" % count)
        assert os.read(self._answers, 1) == b"!"

    def close(self):
        self.append(0)

    def end(self):
        os.close(self._orders)
        os.close(self._answers)
        assert os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1]) == 0


@pytest.mark.parametrize("moment", ["check_format", "check_header_sum"])
@pytest.mark.parametrize("what", ["append", "close", "append and close"])
def test_run_that_writes_while_the_trace_is_being_opened(tmp_path, monkeypatch, moment, what):
    """In the middle of a look the file grows, and its writer may be gone before the look is over."""
    made = header()
    writer = Elsewhere(tmp_path / "run.h5", made)
    writer.append(CHUNK_STEPS - 2)
    real = getattr(opening, moment)
    told = []

    def interrupted(*arguments):
        if not told:
            told.append(True)
            if "append" in what:
                writer.append(3 * CHUNK_STEPS)
            if "close" in what:
                writer.close()
        return real(*arguments)

    monkeypatch.setattr(opening, moment, interrupted)
    with Trace(tmp_path / "run.h5") as trace:
        assert told
        assert_rows(trace, made, (4 if "append" in what else 1) * CHUNK_STEPS - 2)
        trace.cloud("coordinate")
        assert trace.state == ("complete" if "close" in what else "being written")
    writer.end()


def test_trace_that_is_kept_open_stays_readable_and_knows_that_there_is_more(tmp_path):
    made = header()
    writer = Elsewhere(tmp_path / "run.h5", made)
    writer.append(CHUNK_STEPS + 3)
    trace = Trace(tmp_path / "run.h5")
    writer.append(5 * CHUNK_STEPS)
    assert_rows(trace, made, CHUNK_STEPS + 3)
    writer.close()
    # What it has is not all of the run's: neither cut off nor complete.
    assert trace.state == "being written"
    assert_rows(trace, made, CHUNK_STEPS + 3)
    assert trace.refresh() == 6 * CHUNK_STEPS + 3
    assert trace.state == "complete"
    writer.end()


def test_opening_over_and_over_while_runs_write_and_close(tmp_path):
    made = header(parameters=[f"p{i}" for i in range(40)])
    path = tmp_path / "run.h5"
    whole = rows(made, 0, 3 * CHUNK_STEPS)
    child = os.fork()
    if child == 0:
        end = time.monotonic() + 3
        try:
            while time.monotonic() < end:
                writer = TraceWriter(path, made, "w")
                for start in range(0, 3 * CHUNK_STEPS, 12):
                    writer.append({name: values[start : start + 12] for name, values in whole.items()})
                    time.sleep(0.004)
                writer.close()
                time.sleep(0.1)
        finally:
            os._exit(0)
    lengths = set()
    try:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if path.exists():
                with Trace(path) as trace:
                    np.testing.assert_array_equal(trace.steps, whole["step"][: len(trace)])
                    trace.to_frame()
                    trace.cloud("parameter")
                    lengths.add(len(trace))
    except BaseException:
        os.waitpid(child, 0)
        raise
    assert lengths


# --- copied or killed while it is being changed ---


def states_of_appends(path, made, monkeypatch):
    """Return the file's bytes, and between what numbers of rows it has, around and in the middle of some appends."""
    states, done, going_on = [], 0, 0

    def note():
        states.append((path.read_bytes(), done, going_on))

    writer = TraceWriter(path, made)
    note()
    real = superblock.state_end

    def noted(descriptor, end):
        # Before and after each time that the first bytes are put in order, which is around each flush.
        note()
        real(descriptor, end)
        note()

    monkeypatch.setattr(superblock, "state_end", noted)
    for count in (CHUNK_STEPS - 1, 5, CHUNK_STEPS, 1):
        going_on = done + count
        writer.append(rows(made, done, done + count))
        done += count
        note()
    monkeypatch.undo()
    writer.close()
    note()
    return states


def test_copy_that_the_writer_overtook_is_right_as_far_as_it_goes(tmp_path, monkeypatch):
    """A copy takes the file's beginning at one moment and its end at a later one."""
    made = header(parameters=[f"p{i}" for i in range(20)])
    states = states_of_appends(tmp_path / "run.h5", made, monkeypatch)
    with h5py.File(tmp_path / "run.h5") as file:
        slots = file["recent/rows"]
        first_chunk = slots.id.get_offset() + slots.size
    generator = random.Random(0)
    copy = tmp_path / "copy.h5"
    refused = [0, 0]
    for first in range(len(states)):
        for second in range(first, min(first + 4, len(states))):
            (early, least, _), (late, _, most) = states[first], states[second]
            for cut in (generator.randrange(first_chunk), generator.randrange(first_chunk, len(early) + 1)):
                copy.write_bytes(early[:cut] + late[cut:])
                try:
                    with Trace(copy) as trace:
                        count = len(trace)
                        assert_rows(trace, made, count)
                except TraceError:
                    # Something lay across the cut: its checksum tells.
                    refused[int(cut >= first_chunk)] += 1
                    continue
                # What waited for its chunk to fill may have been in neither part.
                assert least // CHUNK_STEPS * CHUNK_STEPS <= count <= most
                if first == second or cut >= first_chunk:
                    assert count >= least
    # Names, indexes and newest rows lie together at the beginning, which copies as a rule take at one go.
    pairs = 4 * len(states)
    assert refused[0] < pairs / 2
    assert refused[1] < pairs / 10
