"""Runs that are killed: what was flushed can be read by everything, and a resumed run is the run without the kill."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from forked import forked
from rows import assert_rows, header, rows

from lsmooth.cli import main
from lsmooth.trace import disk, superblock
from lsmooth.trace.layout import CHUNK_STEPS, FIELDS
from lsmooth.trace.reader import Trace
from lsmooth.trace.recent import RecentWriter
from lsmooth.trace.writer import TraceWriter

KILLS = 12


@pytest.fixture(scope="module")
def whole(trainer, tmp_path_factory):
    """Path of a run that was not killed, longer than any that is."""
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    trainer.start(path=path, steps=300)
    assert trainer.end() == 0
    return path


def assert_begins_like(path, whole):
    """Compare all numbers of a trace with those that another begins with, bit for bit; return its length."""
    with Trace(path) as trace, Trace(whole) as other:
        assert trace.parameters == other.parameters
        count = min(len(trace), len(other))
        for field in FIELDS:
            if trace.has(field.name) and field.name != "time":
                np.testing.assert_array_equal(
                    trace.read(field.name, slice(count)), other.read(field.name, slice(count)), err_msg=field.name
                )
        return len(trace)


def flushed(told):
    """Return how many rows a run said were in its file."""
    return int.from_bytes(told.read_bytes(), "little") if told.exists() else 0


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.002)


def test_killed_at_any_moment_all_that_was_flushed_is_read_by_everything(trainer, whole, tmp_path):
    generator = random.Random(0)
    run = CliRunner()
    lengths = []
    for kill in range(KILLS):
        path, told = tmp_path / f"{kill}.h5", tmp_path / f"{kill}.rows"
        # The first is killed before anything was flushed, the others flush a block of a few rows all the time.
        child = trainer.start(path=path, steps=10**6, told=told, block_seconds=60 if kill == 0 else 0.01)
        least = generator.randrange(1, 120)
        wait_for(path.exists if kill == 0 else lambda told=told, least=least: flushed(told) >= least)
        time.sleep(0 if kill == 0 else generator.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert trainer.end() == -signal.SIGKILL
        count = assert_begins_like(path, whole)
        # A last block may have reached the file without the run having come to say so.
        assert flushed(told) <= count
        lengths.append(count)
        with Trace(path) as trace:
            assert trace.state == "cut off"

        done = run.invoke(main, ["info", str(path), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["measured_steps"] == count
        commands = [["estimate", str(path)]]
        # Drawing takes longer than all the rest.
        if kill % 5 == 0:
            commands.append(["plot", str(path), "-o", str(tmp_path / f"{kill}.png")])
        for command in commands:
            done = run.invoke(main, command)
            if done.exit_code:
                # Nothing to draw: one sentence.
                assert count < 3, done.output
                assert done.exit_code == 1
                assert len(done.output.splitlines()) == 1
    assert lengths[0] == 0
    assert sorted(lengths)[KILLS // 2] > CHUNK_STEPS


@pytest.mark.parametrize(("every", "everything"), [(1, True), (3, False)])
def test_killed_and_resumed_it_is_the_run_that_was_not(trainer, tmp_path, every, everything):
    steps = 150
    whole, path, checkpoint = tmp_path / "whole.h5", tmp_path / "run.h5", tmp_path / "run.pt"
    trainer.start(path=whole, steps=steps, every=every, everything=everything)
    assert trainer.end() == 0
    generator = random.Random(every)
    for _ in range(5):
        told = tmp_path / "told"
        told.unlink(missing_ok=True)
        child = trainer.start(
            path=path,
            steps=steps,
            checkpoint=checkpoint,
            every_checkpoint=14,
            block_seconds=0.005,
            told=told,
            every=every,
            everything=everything,
        )
        wait_for(lambda child=child, told=told: told.exists() or not Path(f"/proc/{child}").exists())
        time.sleep(generator.uniform(0, 0.05))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        if trainer.end() == 0:
            break
    # Where a kill came after the last checkpoint, or none came in time, the run is brought to its end here.
    trainer.start(path=path, steps=steps, checkpoint=checkpoint, every=every, everything=everything)
    assert trainer.end() == 0
    assert assert_begins_like(path, whole) == len(range(0, steps, every))
    with Trace(path) as trace, Trace(whole) as other:
        assert trace.state == "complete"
        assert trace.steps.tolist() == list(range(0, steps, every))
        assert trace.next_step == other.next_step == steps
        assert all(trace.has(field.name) for field in FIELDS) == everything
        if everything:
            for parameter in trace.parameters:
                np.testing.assert_array_equal(trace.density(parameter).counts, other.density(parameter).counts)
                assert trace.density(parameter).steps == other.density(parameter).steps
    assert {item.name for item in tmp_path.iterdir()} <= {"whole.h5", "run.h5", "run.pt", "run.pt.new", "told"}


# --- the writer alone, killed at chosen moments ---


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


def assert_survived(path, made, least, most):
    """Everything reads what had been flushed, and nothing else."""
    with Trace(path) as trace:
        assert trace.state == "cut off"
        assert least <= len(trace) <= most
        assert_rows(trace, made, len(trace))
    done = CliRunner().invoke(main, ["info", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["state"] == "cut off"


def test_killed_at_any_moment_of_a_flush(tmp_path):
    """HDF5 writes what a chunk needs in some dozen places, one after the other."""
    made = header()
    before, block = rows(made, 0, CHUNK_STEPS - 1), rows(made, CHUNK_STEPS - 1, 2 * CHUNK_STEPS)
    took = []
    for moment in range(41):
        path = tmp_path / f"{moment}.h5"

        def work(path=path, moment=moment):
            writer = TraceWriter(path, made)
            writer.append(before)
            if moment:
                # The signal's own action, which is to end the process: no Python in between.
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, took[0] * moment / 40))
            started = time.monotonic()
            writer.append(block)
            if moment:
                kill_this_process()
            return str(time.monotonic() - started)

        answer = forked(work)
        if not moment:
            took.append(float(answer))
        assert_survived(path, made, CHUNK_STEPS - 1, 2 * CHUNK_STEPS)


@pytest.mark.parametrize("place", ["before the mark goes", "after the mark went"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_killed_around_the_removal_of_the_mark(tmp_path, place, call):
    """An append puts the first bytes in order three times: before HDF5 writes, and after each of its two flushes."""
    made, path = header(), tmp_path / "run.h5"
    real, calls = superblock.state_end, []

    def state_end(descriptor, end):
        calls.append(end)
        last = len(calls) == call + 1
        if last and place == "before the mark goes":
            kill_this_process()
        real(descriptor, end)
        if last:
            kill_this_process()

    def work():
        writer = TraceWriter(path, made)
        writer.append(rows(made, 0, 5))
        superblock.state_end = state_end
        writer.append(rows(made, 5, CHUNK_STEPS + 3))
        return "not killed"

    assert forked(work) == "ended by SIGKILL"
    marked = path.read_bytes()[11] != 0
    # HDF5 marks the file when it writes these bytes: at the first flush, and at the second where the file has grown.
    if place == "after the mark went" or call < 2:
        assert marked == (place == "before the mark goes" and call == 1)
    opens = "import h5py, sys; print(len(h5py.File(sys.argv[1], 'r')['step']))"
    other = subprocess.run([sys.executable, "-c", opens, str(path)], capture_output=True, text=True, check=False)
    if marked:
        # What others refuse, and the page on the format says so, is read here all the same.
        assert "already open for write" in other.stderr
    else:
        assert other.returncode == 0, other.stderr
    assert_survived(path, made, 5, CHUNK_STEPS + 3)
    # And it can be continued.
    count = len(Trace(path))
    writer = TraceWriter(path, made, "a")
    writer.append(rows(made, count, 2 * CHUNK_STEPS))
    writer.close()
    assert_rows(Trace(path), made, 2 * CHUNK_STEPS)


@pytest.mark.parametrize("place", ["mark_closed", "reserve", "ftruncate"])
def test_killed_while_the_run_closes_the_file(tmp_path, place):
    made, path = header(), tmp_path / "run.h5"

    def work():
        writer = TraceWriter(path, made)
        writer.append(rows(made, 0, CHUNK_STEPS))
        owner = {"mark_closed": RecentWriter, "reserve": disk, "ftruncate": os}[place]
        real = getattr(owner, place)

        def then_killed(*arguments):
            real(*arguments)
            kill_this_process()

        setattr(owner, place, then_killed)
        writer.close()
        return "not killed"

    assert forked(work) == "ended by SIGKILL"
    with Trace(path) as trace:
        # The note that the run has ended is what counts.
        assert trace.state == "complete"
        assert_rows(trace, made, CHUNK_STEPS)
    assert CliRunner().invoke(main, ["info", str(path)]).exit_code == 0
