"""A loss of power: pages of a file may be older than the rest, and no wrong number is read from it.

The test knows every earlier state of each page. A page that had not been written yet is zeros.
"""

import os
import random
import threading

import numpy as np
import pytest
from rows import assert_rows, header, rows
from small_run import train
from stale_pages import PAGE, history, some_pages, with_stale_pages, wrong_numbers

from lsmooth.errors import TraceError
from lsmooth.trace import disk, superblock
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.recent import RecentWriter
from lsmooth.trace.writer import TraceWriter

BLOCKS = (1, 31, 5, 64, 40, 3, 32, 33)
COUNT = sum(BLOCKS)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "cut off"])
@pytest.mark.parametrize("densities", [True, False], ids=["densities", "rows alone"])
def test_no_wrong_number_is_read_where_pages_are_older(tmp_path, close, densities):
    made = header(parameters=[f"p{i}" for i in range(6 if densities else 70)], densities=densities)
    path = tmp_path / "run.h5"
    moments = history(path, made, BLOCKS, close=close)
    truth = rows(made, 0, COUNT)
    assert wrong_numbers(path, made, truth, COUNT) == ([], True)
    problems, read = [], 0
    for seed in range(40):
        path.write_bytes(with_stale_pages(moments, random.Random(seed), some_pages(seed)))
        wrong, was_read = wrong_numbers(path, made, truth, COUNT)
        read += was_read
        if wrong:
            problems.append(f"case {seed}: {', '.join(wrong)}")
    assert not problems, "\n".join(problems)
    # Both happen: some pages are of no consequence, others are missed.
    assert 4 < read < 36


def test_a_finished_file_with_one_older_page_is_read_right_or_refused(tmp_path):
    """Each page, as it was at the moment before it got its last contents."""
    made = header(densities=False)
    path = tmp_path / "run.h5"
    moments = history(path, made, BLOCKS, close=True)
    truth = rows(made, 0, COUNT)
    final, tried, holes = moments[-1], 0, 0
    for start in range(0, len(final), PAGE):
        page = final[start : start + PAGE]
        older = {moment[start : start + PAGE].ljust(len(page), b"\0") for moment in moments} - {page}
        for old in sorted(older):
            path.write_bytes(final[:start] + old + final[start + PAGE :])
            assert wrong_numbers(path, made, truth, COUNT)[0] == []
            tried += 1
            try:
                Trace(path).close()
            except TraceError as error:
                holes += "lacks rows that it counts" in str(error)
    assert tried > 50
    # HDF5 reads zeros there, and says nothing.
    assert holes > 0


def test_densities_that_are_older_than_the_end_of_the_run_are_refused(tmp_path):
    made = header(densities=True)
    path = tmp_path / "run.h5"
    moments = history(path, made, (5, 5, 5), close=True)
    with Trace(path) as trace:
        assert trace.density_counts().steps == 15
        counts = trace._file["density/counts"]
        note = trace._file["density/note"]
        places = [(item.id.get_offset(), item.id.get_storage_size()) for item in (counts, note)]
    data = bytearray(moments[-1])
    for start, size in places:
        data[start : start + size] = moments[-3][start : start + size]
    path.write_bytes(data)
    with Trace(path) as trace:
        assert_rows(trace, made, 15)
        with pytest.raises(TraceError, match="its newest counts are number"):
            trace.density_counts()


# --- what is on the disk, and when ---


@pytest.fixture
def log(monkeypatch):
    """What happens to a file in which order: states of its end, syncs, the note of its end, its name."""
    done = []

    def noting(owner, name, word):
        real = getattr(owner, name)

        def call(*arguments, **others):
            done.append(word)
            return real(*arguments, **others)

        monkeypatch.setattr(owner, name, call)

    noting(superblock, "state_end", "end")
    noting(disk, "sync", "sync")
    noting(disk, "sync_folder", "sync folder")
    noting(RecentWriter, "mark_closed", "closed")
    noting(os, "replace", "name")
    monkeypatch.setattr(disk.PacedSync, "is_due", lambda self: True)
    return done


def test_what_is_referred_to_is_on_the_disk_before_what_refers_to_it(tmp_path, log):
    made = header()
    writer = TraceWriter(tmp_path / "run.h5", made)
    log.clear()
    writer.append(rows(made, 0, CHUNK_STEPS))
    # Room, all datasets but `step`, the disk, `step`, the disk.
    assert log == ["end", "end", "sync", "sync folder", "end", "sync", "sync"]
    log.clear()
    writer.append(rows(made, CHUNK_STEPS, CHUNK_STEPS + 3))
    assert log == ["sync"]
    log.clear()
    writer.close()
    assert log[-3:] == ["sync", "closed", "sync"]


def test_a_continued_trace_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, log, monkeypatch):
    made, path = header(), tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 40))
    writer.close()
    writer = TraceWriter(path, made, "a")
    log.clear()
    # However little time there is for it otherwise.
    monkeypatch.setattr(disk.PacedSync, "is_due", lambda self: False)
    synced = []
    real = disk.sync
    monkeypatch.setattr(
        disk, "sync", lambda descriptor: (real(descriptor), synced.append(os.pread(descriptor, 10**8, 0)))
    )
    replace = type(path).replace
    named = []

    def note(self, target):
        named.append((self.read_bytes(), len(synced)))
        return replace(self, target)

    monkeypatch.setattr(type(path), "replace", note)
    writer.append(rows(made, 40, 41))
    ((data, before),) = named
    assert synced[:before] == [data]
    assert "sync folder" in log
    writer.close()


def test_a_disk_that_takes_long_to_bring_rows_home_holds_up_no_step(tmp_path, monkeypatch):
    """The disk answers when training is over: a step, or a start, that waited for it would wait for ever."""
    over = threading.Event()
    real = os.fsync

    def slow(descriptor):
        assert over.wait(60)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    path = tmp_path / "run.h5"
    train(path, 80, lambda step, recorder: over.set() if step == 79 else None)
    with Trace(path) as trace:
        np.testing.assert_array_equal(trace.steps, np.arange(80))
        assert trace.state == "complete"


def test_bringing_rows_home_takes_at_most_a_tenth_of_the_time(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(disk.time, "monotonic", lambda: clock[0])
    calls = []

    def slow(descriptor):
        calls.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr(disk, "sync", slow)
    with open(tmp_path / "file", "wb") as file:
        paced = disk.PacedSync(file.fileno(), tmp_path)
        for _ in range(1000):
            clock[0] += 0.1
            if paced.is_due():
                paced.now()
    spent = 0.5 * len(calls) / (clock[0] - 100.0)
    assert 0.08 < spent <= 0.1
