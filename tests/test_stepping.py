"""Steps in turn: which ones are measured, and when their rows are handed over."""

import torch
from loops import batches, classify, mlp, seed_all, sgd

import lsmooth
from lsmooth.trace.layout import Status


def test_rows_come_in_the_order_of_steps_whether_measured_or_skipped(tmp_path):
    """A backward pass whose step did not come is a row of its own, flagged."""
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for attempt, (x, y) in enumerate(batches(5)):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            if attempt != 2:
                optimizer.step()
        assert recorder.step == 5
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0, 1, 2, 3, 4]
        assert (trace.status == Status.MEASURED).tolist() == [True, True, False, True, True]


def test_a_step_that_is_not_due_is_not_copied(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=lambda step: step == 1) as recorder:
        for x, y in batches(3):
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").steps.tolist() == [1]


def test_a_closed_recorder_has_let_go_of_the_optimizer(tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) > before
    recorder.close()
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == before
