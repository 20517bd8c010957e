"""A backward pass that the recorder runs: it does what the loop's own would, and is remembered."""

import pytest
import torch
from loops import batches, classify, sgd

import lsmooth
from lsmooth.loop.backward import factor_of

pytestmark = pytest.mark.usefixtures("device")


def test_closure_variables_rebound_before_the_step_do_not_matter(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(3):
            optimizer.zero_grad()
            for part in (slice(0, 4), slice(4, 8)):
                inputs, targets = x[part], y[part]
                recorder.backward(lambda: classify(model, inputs, targets) / 2)  # noqa: B023
            inputs = targets = None
            optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 3}


def test_closure_assigning_to_nonlocal_names_is_not_seen_by_the_loop(tmp_path, model):
    calls = 0
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for x, y in batches(3):

            def closure(x=x, y=y):
                nonlocal calls
                calls += 1
                return classify(model, x, y)

            optimizer.zero_grad()
            recorder.backward(closure)
            optimizer.step()
    assert calls == 3


def test_backward_returns_what_the_closure_returned_detached(tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=2) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss, extra = recorder.backward(lambda: (classify(model, x, y), {"logits": model(x), "note": "kept"}))
            assert not loss.requires_grad
            assert not extra["logits"].requires_grad
            assert extra["note"] == "kept"
            optimizer.step()


def test_gradients_are_those_of_the_loops_own_backward(tmp_path, model):
    (x, y), *_ = batches(1)
    torch.manual_seed(1)
    classify(model, x, y).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5") as recorder:
        torch.manual_seed(1)
        recorder.backward(lambda: classify(model, x, y))
        for p, gradient in zip(model.parameters(), expected, strict=True):
            assert torch.equal(p.grad, gradient)


def test_an_error_of_the_closure_is_the_loops(tmp_path, model):
    (x, y), *_ = batches(1)
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        with pytest.raises(ZeroDivisionError):
            recorder.backward(lambda: 1 / 0)
        optimizer.zero_grad()
        recorder.backward(lambda: classify(model, x, y))
        optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 1}


def test_a_scalers_factor_is_known_without_waiting(device):
    assert factor_of(None, torch.device(device)) is None
    assert factor_of(torch.amp.GradScaler(device, enabled=False), torch.device(device)) is None
    factor = factor_of(torch.amp.GradScaler(device, init_scale=1024.0), torch.device(device))
    assert (factor.shape, float(factor)) == ((), 1024.0)
