"""Where rows go: to the file, on a thread, and on from where a run was left."""

import pytest
import torch
from rows import header
from torch import nn

from lsmooth.errors import TraceError
from lsmooth.measure.recording import Recording
from lsmooth.parallel.ranks import Ranks
from lsmooth.trace.layout import Status
from lsmooth.trace.reader import Trace


def opened(path, mode="x", **arguments):
    parameters = [nn.Parameter(torch.zeros(size)) for size in header(**arguments).parameter_sizes]
    ranks = Ranks(nn.ParameterList(parameters), header().parameters, parameters)
    return Recording(path, header(**arguments), mode, ranks, parameters, {})


def add(recording, *steps):
    for step in steps:
        row = recording.handover.new_row()
        row.numbers.fill_(1.0)
        row["status"].fill_(float(Status.MEASURED))
        recording.handover.add(row, step, recording.seconds)


def test_rows_reach_the_file(tmp_path):
    recording = opened(tmp_path / "run.h5")
    add(recording, 0, 1, 2)
    recording.flush()
    assert Trace(tmp_path / "run.h5").steps.tolist() == [0, 1, 2]
    recording.close(3, wait=True)
    trace = Trace(tmp_path / "run.h5")
    assert (trace.state, trace.next_step) == ("complete", 3)


def test_a_run_goes_on_where_its_file_ends_and_where_its_clock_stood(tmp_path):
    recording = opened(tmp_path / "run.h5")
    add(recording, 0, 1)
    recording.close(2, wait=True)
    recording = opened(tmp_path / "run.h5", "a")
    assert recording.next_step == 2
    before = float(Trace(tmp_path / "run.h5").time[-1])
    assert recording.seconds >= before
    add(recording, 2)
    recording.close(3, wait=True)
    assert Trace(tmp_path / "run.h5").steps.tolist() == [0, 1, 2]


def test_what_a_checkpoint_does_not_know_is_dropped(tmp_path):
    recording = opened(tmp_path / "run.h5")
    add(recording, 0, 1)
    state = {"step": 2, **recording.state()}
    assert state["rows"] == 2
    add(recording, 2, 3)
    recording.close(4, wait=True)
    recording = opened(tmp_path / "run.h5", "a")
    recording.go_on_from(state)
    add(recording, 2)
    recording.close(3, wait=True)
    assert Trace(tmp_path / "run.h5").steps.tolist() == [0, 1, 2]


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path):
    opened(tmp_path / "run.h5").close(0, wait=True)
    with pytest.raises(TraceError, match="exists"):
        opened(tmp_path / "run.h5")
    opened(tmp_path / "run.h5", "w").close(0, wait=True)


def test_a_step_that_did_not_come_is_a_flagged_row(tmp_path):
    from lsmooth.loop.step import SkippedStep

    recording = opened(tmp_path / "run.h5")
    recording.add_skipped(SkippedStep(5, torch.tensor(2.5), (0.1, 0.2), 0))
    recording.close(6, wait=True)
    trace = Trace(tmp_path / "run.h5")
    assert trace.steps.tolist() == [5]
    assert trace.loss.tolist() == [2.5]
    assert trace.status[0] & Status.NO_DISPLACEMENT
