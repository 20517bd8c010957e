"""Tensors that a loss reads contain in replays what they contained, or the step is refused."""

import numpy as np
import pytest
import torch
from loops import batches, classify, mlp, seed_all, sgd
from torch import nn

import lsmooth
from lsmooth.errors import InputChangedError
from lsmooth.replay.contents import SMALL_BYTES, TensorState, contents_put_back
from lsmooth.replay.reach import reached


def state_of(*tensors, models=()):
    return TensorState.capture(tensors, models)


@pytest.mark.parametrize("write", ["in place", "data", "numpy", "memory"])
def test_what_a_forward_pass_writes_to_is_put_back(write):
    x = torch.arange(6.0)
    state = state_of(x)
    if write == "in place":
        x.mul_(2)
    elif write == "data":
        x.data.mul_(2)
    elif write == "numpy":
        x.numpy()[:] *= 2
    else:
        x.data = x.data * 2
    state = state.after_forward()
    version = x._version
    with contents_put_back([state]):
        state.restore()
        assert x.tolist() == [0, 1, 2, 3, 4, 5]
        x.mul_(2)
        state.restore()
        assert x.tolist() == [0, 1, 2, 3, 4, 5]
    assert x.tolist() == [0, 2, 4, 6, 8, 10]
    # Graphs of the loop's own that have saved it take it for unchanged.
    assert x._version == version


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64])
def test_contents_of_every_dtype_are_compared(dtype):
    x = torch.ones(3, 2, dtype=dtype).t()
    state = state_of(x)
    x.data.zero_()
    state = state.after_forward()
    state.restore()
    assert x.bool().all()


def test_large_inputs_that_change_before_the_step_are_refused_and_small_ones_remembered():
    small, large = torch.zeros(4), torch.zeros(SMALL_BYTES)
    state = state_of(small, large).after_forward()
    small.fill_(1)
    state.restore()
    assert small.tolist() == [0] * 4
    large.fill_(1)
    with pytest.raises(InputChangedError, match=r"shape \(65536,\), was overwritten in place"):
        state.restore()


def test_inputs_too_large_to_be_copied_that_the_loss_writes_to_are_refused(monkeypatch):
    monkeypatch.setattr("lsmooth.replay.contents._COPIED_BYTES", 8)
    x = torch.zeros(4)
    state = state_of(x)
    x.add_(1)
    with pytest.raises(InputChangedError):
        state.after_forward().restore()


def test_views_of_parameters_and_inference_tensors_are_left_alone():
    model = nn.Linear(3, 3)
    free = torch.zeros(3, requires_grad=True)
    with torch.inference_mode():
        fixed = torch.ones(3)
    found = reached(lambda: (model, view, free, alias, fixed))
    view, alias = model.weight.detach(), free.detach()
    found = reached(lambda: (model, view, free, alias, fixed))
    state = TensorState.capture(found.tensors, found.models).after_forward()
    with torch.no_grad():
        model.weight.fill_(7)
        free.fill_(7)
    state.restore()
    assert view.eq(7).all()
    assert alias.eq(7).all()


def test_a_teacher_that_the_loss_updates_moves_once_a_step(tmp_path):
    class Momentum(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = mlp(), mlp().requires_grad_(False)

        def forward(self, x):
            for k, q in zip(self.key.parameters(), self.query.parameters(), strict=True):
                k.data.mul_(0.9).add_(0.1 * q.data)
            return self.query(x) + self.key(x)

    def run(path):
        seed_all()
        model = Momentum()
        optimizer = torch.optim.SGD(model.query.parameters(), lr=0.3)
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        for x, y in batches(3):
            optimizer.zero_grad()
            closure = lambda: classify(model, x, y)  # noqa: E731, B023
            recorder.backward(closure) if recorder else closure().backward()
            optimizer.step()
        if recorder:
            recorder.close()
        return [p.tolist() for p in model.parameters()]

    assert run(None) == run(tmp_path / "run.h5")
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 3}


@pytest.mark.parametrize("write", ["in place", "other memory"])
@pytest.mark.parametrize("where", ["beside the model", "inside of it"])
def test_a_teacher_that_requires_a_gradient_and_gets_none_moves_once_a_step(where, write, tmp_path):
    def follow(teacher, model):
        with torch.no_grad():
            for theirs, ours in zip(teacher.parameters(), model.parameters(), strict=True):
                if write == "in place":
                    theirs.mul_(0.9).add_(0.1 * ours)
                else:
                    theirs.data = 0.9 * theirs.data + 0.1 * ours.data

    def run(path):
        seed_all()
        student, teacher = mlp(), mlp()
        optimizer = sgd(student)
        model = torch.nn.ModuleList([student, teacher]) if where == "inside of it" else student
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None

        def loss(x):
            follow(teacher, student)
            with torch.no_grad():
                target = teacher(x)
            return (student(x) - target - 1).square().mean()

        for x, _ in batches(4):
            optimizer.zero_grad()
            recorder.backward(lambda: loss(x)) if recorder else loss(x).backward()  # noqa: B023
            optimizer.step()
        if recorder:
            assert recorder.failure is None
            recorder.close()
        return [p.tolist() for p in (*student.parameters(), *teacher.parameters())]

    assert run(None) == run(tmp_path / "run.h5")
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 4}


def test_the_memory_of_inputs_may_be_given_back_and_conjugates_may_be_read(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(3):
            optimizer.zero_grad()
            large, wave = torch.randn(200, 600), torch.complex(x, x).conj()
            negated = wave.imag
            recorder.backward(lambda: classify(model, wave.real + negated + large.mean(), y))  # noqa: B023
            optimizer.step()
            assert negated.is_neg()
            large.untyped_storage().resize_(0)
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 3}


@pytest.mark.parametrize("fault", ["normalized in place", "one buffer for all", "numpy memory reused"])
def test_losses_whose_inputs_change_have_the_numbers_of_those_whose_do_not(fault, tmp_path):
    def run(path, faulty):
        seed_all()
        model = mlp()
        optimizer = sgd(model)
        array = np.zeros((8, 6), dtype=np.float32)
        buffer = torch.from_numpy(array) if fault == "numpy memory reused" else torch.empty(8, 6)
        with lsmooth.Recorder(model, optimizer, path) as recorder:
            for i in range(3):
                optimizer.zero_grad()
                for x, y in batches(2, seed=i + 1):
                    if faulty and fault == "numpy memory reused":
                        array[:] = x.numpy()
                        x = buffer
                    elif faulty and fault == "one buffer for all":
                        x = buffer.copy_(x)
                    in_place = faulty and fault == "normalized in place"

                    def closure():
                        z = x.sub_(0.5).div_(2) if in_place else (x - 0.5) / 2  # noqa: B023
                        return classify(model, z, y)  # noqa: B023

                    recorder.backward(closure)
                optimizer.step()
        trace = lsmooth.Trace(path)
        assert trace.status_counts() == {"measured": 3}
        return trace.read("grad_diff")

    np.testing.assert_allclose(run(tmp_path / "a.h5", True), run(tmp_path / "b.h5", False), rtol=1e-6)


def test_a_graph_of_the_loops_own_may_have_saved_an_input_that_replays_write_to(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    other = torch.ones(8, 6, requires_grad=True)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        recorder.backward(lambda: classify(model, x.mul_(0.5), y))
        later = (other * x).sum()
        optimizer.step()
        later.backward()
    assert torch.equal(other.grad, x)
