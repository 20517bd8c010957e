"""Which steps are measured, what is collected for them, and several recorders on one loop."""

import numpy as np
import pytest
import torch
from loops import (
    Bare,
    Recorded,
    batches,
    classify,
    differences,
    everything,
    mlp,
    seed_all,
    sgd,
    simple,
    train,
)
from torch import nn

import lsmooth

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize(
    ("every", "expected"), [(1, list(range(7))), (3, [0, 3, 6]), (lambda step: step in (1, 2, 5), [1, 2, 5])]
)
def test_every_chooses_steps(every, expected, tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=every) as recorder:
        train(recorder, model, optimizer, 7)
    assert lsmooth.Trace(tmp_path / "run.h5").steps.tolist() == expected


def test_every_asks_once_a_step(tmp_path, model):
    asked = []
    optimizer = sgd(model)
    with lsmooth.Recorder(
        model, optimizer, tmp_path / "run.h5", every=lambda step: bool(asked.append(step))
    ) as recorder:
        train(recorder, model, optimizer, 4)
    assert asked == [0, 1, 2, 3]


def test_latest_is_the_last_well_measured_step_of_the_trace(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=2) as recorder:
        assert recorder.latest is None
        for step, (x, y) in enumerate(batches(6)):
            optimizer.param_groups[0]["lr"] = 0.1 if step < 4 else 0.0
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        recorder.flush()
        latest = recorder.latest
    assert latest.step == 2
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert latest.loss == pytest.approx(trace.loss[1])
        assert latest.smoothness == pytest.approx(trace.cloud().smoothness[1, 0], rel=1e-5)
        assert latest.grad_norm == pytest.approx(trace.cloud().grad_norm[1, 0], rel=1e-5)


def test_unmeasured_steps_may_use_plain_backward(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=2) as recorder:
        for i, (x, y) in enumerate(batches(4)):
            optimizer.zero_grad()
            if i % 2:
                classify(model, x, y).backward()
            else:
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").steps.tolist() == [0, 2]


def test_attached_and_detached_mid_run_the_run_is_the_same(tmp_path):
    def run(record):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        optimizer = torch.optim.Adam(model.parameters())
        recorder = None
        for i, (x, y) in enumerate(batches(9)):
            if record and i == 3:
                recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
            if record and i == 6:
                recorder.close()
            optimizer.zero_grad()
            if recorder is None:
                classify(model, x, y).backward()
            else:
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        return everything(model, optimizer)

    assert differences(run(False), run(True)) == []
    assert len(lsmooth.Trace(tmp_path / "run.h5")) == 3


def test_two_recorders_on_one_loop(tmp_path, model):
    optimizer = sgd(model)
    with (
        lsmooth.Recorder(model, optimizer, tmp_path / "one.h5") as one,
        lsmooth.Recorder(model, optimizer, tmp_path / "two.h5", every=2, gammas=(0.5,), coordinates=0),
    ):
        train(one, model, optimizer, 5)
    first, second = lsmooth.Trace(tmp_path / "one.h5"), lsmooth.Trace(tmp_path / "two.h5")
    assert second.steps.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(second.read("grad_norm"), first.read("grad_norm")[::2])
    np.testing.assert_array_equal(second.read("grad_diff")[:, 0], first.read("grad_diff")[::2, 2])


def test_two_recorders_change_nothing(tmp_path):
    class Both(Recorded):
        def attach(self, model, optimizer):
            super().attach(model, optimizer)
            self.second = lsmooth.Recorder(model, optimizer, tmp_path / "second.h5", every=2)

        def end(self):
            super().end()
            self.second.close()

    def loop(watch):
        model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        return simple(model, sgd(model, momentum=0.9), watch)

    results = []
    for watch in (Bare(), Both(tmp_path / "run.h5")):
        seed_all()
        results.append(everything(*loop(watch)))
    assert differences(*results) == []


def test_two_optimizers_on_one_loss_each_with_a_recorder(tmp_path, model):
    front, back = torch.optim.SGD(model[0].parameters(), lr=0.2), torch.optim.SGD(model[3].parameters(), lr=0.2)
    with (
        lsmooth.Recorder(model, front, tmp_path / "front.h5") as recorder,
        lsmooth.Recorder(model, back, tmp_path / "back.h5"),
    ):
        for x, y in batches(3):
            model.zero_grad()
            recorder.backward(lambda x=x, y=y: classify(model, x, y))
            front.step()
            back.step()
    assert lsmooth.Trace(tmp_path / "front.h5").parameters == ["0.weight", "0.bias"]
    assert lsmooth.Trace(tmp_path / "back.h5").status_counts() == {"measured": 3}
