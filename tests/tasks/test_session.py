"""A recorded run that is stopped, killed and resumed: the same trace, bit for bit."""

import os
import signal

import numpy as np
import pytest
import torch

import lsmooth
from lsmooth.tasks import checkpoint as checkpoint_module
from lsmooth.tasks.checkpoint import CheckpointError, checkpoint_path, load_checkpoint
from lsmooth.tasks.plan import make_plan
from lsmooth.tasks.session import Session
from lsmooth.trace.layout import FIELDS

TINY = {"embedding": 8, "heads": 1, "feed_forward": 8, "sequence": 6, "batch_size": 4, "report_every": 9, "steps": 30}
RECORDING = {"every": 3, "coordinates": 2}
EVERYTHING = {
    **RECORDING,
    "densities": True,
    "critical": True,
    "norms": ["l2", "linf", "spectral", {"layers": "spectral", "*": "linf"}],
    "blocks": (3, 6),
    "probe": 8,
    "probe_size": 4,
}


@pytest.fixture(scope="module")
def planned():
    return make_plan("transformer-encoder", optimizer="generalized-signsgd", changes=TINY | {"lr": 1e-2})


def begin(planned, path, recording=RECORDING, **arguments):
    plan, data = planned
    return Session(plan, path, recording, data=data, **arguments)


@pytest.fixture(scope="module")
def whole(planned, tmp_path_factory):
    """An uninterrupted run: its trace and what its model came to."""
    path = tmp_path_factory.mktemp("whole") / "run.h5"
    with begin(planned, path) as session:
        assert session.train() == "finished"
    return path, session.run.problem.model.state_dict()


def assert_same_trace(one, two):
    with lsmooth.Trace(one) as a, lsmooth.Trace(two) as b:
        assert a.steps.tolist() == b.steps.tolist() == list(range(0, 30, 3))
        for field in FIELDS:
            assert a.has(field.name) == b.has(field.name)
            if a.has(field.name) and field.name != "time":
                np.testing.assert_array_equal(a.read(field.name), b.read(field.name), err_msg=field.name)


def stop_after(step):
    def watch(session):
        if session.run.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


@pytest.mark.parametrize("at", [1, 9, 13])
def test_stopped_by_ctrl_c_and_resumed_the_trace_is_the_same(at, planned, whole, tmp_path):
    path = tmp_path / "run.h5"
    with begin(planned, path) as session:
        assert session.train(stop_after(at)) == "stopped"
    assert session.run.step == at
    torch.manual_seed(123)
    with Session.resume(path) as again:
        assert again.run.step == at
        assert again.train() == "finished"
    assert_same_trace(path, whole[0])
    mine = again.run.problem.model.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in whole[1].items())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("recording", [RECORDING, EVERYTHING], ids=["default", "everything"])
def test_killed_after_its_last_checkpoint_steps_are_made_again(recording, planned, whole, tmp_path):
    """What a kill leaves: a checkpoint from step 7, a trace that is ahead of it."""
    path, other = tmp_path / "run.h5", whole[0]
    if recording is EVERYTHING:
        other = tmp_path / "whole.h5"
        with begin(planned, other, recording) as session:
            session.train()
        with lsmooth.Trace(other) as trace:
            assert [field.name for field in FIELDS if not trace.has(field.name)] == []
            assert not np.isnan(trace.critical_lr().critical_gamma).any()
            assert trace.blocks().step.unique().tolist() == list(range(0, 30, 6))
    session = begin(planned, path, recording, checkpoint_seconds=1e9)
    for _ in session.run.steps(session.recorder):
        if session.run.step == 7:
            session.save()
        if session.run.step == 20:
            break
    session.recorder.flush()
    session.close()
    with lsmooth.Trace(path) as trace:
        assert trace.steps.max() == 18
    with Session.resume(path) as again:
        assert again.run.step == 7
        again.train()
    assert_same_trace(path, other)
    if recording is EVERYTHING:
        with lsmooth.Trace(path) as a, lsmooth.Trace(other) as b:
            for name in a.parameters:
                np.testing.assert_array_equal(a.density(name).counts, b.density(name).counts)


def test_a_finished_run_can_be_extended(planned, whole, tmp_path):
    path = tmp_path / "run.h5"
    plan, data = planned
    with Session(plan.with_hyperparameters({"steps": 12}), path, RECORDING, data=data) as session:
        assert session.train() == "finished"
    with Session.resume(path, extend={"steps": 30}) as again:
        assert again.train() == "finished"
        assert again.run.step == 30
    with lsmooth.Trace(path) as trace:
        assert trace.steps.tolist() == list(range(0, 30, 3))


def test_without_a_checkpoint_there_is_no_resuming(planned, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*run\.h5\.checkpoint\.pt"):
        Session.resume(tmp_path / "run.h5")
    path = tmp_path / "run.h5"
    with begin(planned, path) as session:
        session.train(stop_after(2))
    path.unlink()
    with pytest.raises(lsmooth.LsmoothError, match="no trace"):
        Session.resume(path)


@pytest.mark.parametrize("damage", ["cut", "foreign", "empty", "folder", "other"])
def test_a_damaged_checkpoint_is_refused_in_a_sentence(damage, planned, tmp_path):
    path = tmp_path / "run.h5"
    with begin(planned, path) as session:
        session.train(stop_after(1))
    place = checkpoint_path(path)
    content = place.read_bytes()
    place.unlink()
    if damage == "cut":
        place.write_bytes(content[: len(content) // 2])
    elif damage == "foreign":
        place.write_text("not a checkpoint")
    elif damage == "empty":
        place.touch()
    elif damage == "folder":
        place.mkdir()
    else:
        torch.save({"weights": torch.ones(2)}, place)
    with pytest.raises(CheckpointError, match=r"run\.h5\.checkpoint\.pt"):
        load_checkpoint(place)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(planned, tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    session = begin(planned, path)
    next(session.run.steps(session.recorder))
    session.save()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.torch, "save", full)
    with pytest.warns(UserWarning, match="No space left"):
        session.save()
    session.close()
    monkeypatch.undo()
    assert load_checkpoint(checkpoint_path(path)).run["position"]["step"] == 1
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run.h5", "run.h5.checkpoint.pt"]
