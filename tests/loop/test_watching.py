"""Loops that call `loss.backward()` themselves: measured exactly as with `recorder.backward`, and changed as little."""

import contextlib
import copy
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from loops import (
    LOOPS,
    Bare,
    Recorded,
    batches,
    classify,
    device_type,
    differences,
    everything,
    mlp,
    not_put_back,
    seed_all,
    sgd,
)
from torch import nn
from waits import CountsWaits

import lsmooth
from lsmooth.errors import RecorderError
from lsmooth.replay import replaying

pytestmark = pytest.mark.usefixtures("device")


class Watched(Recorded):
    """The loop calls backward itself, on what a watched function returned."""

    def backward(self, closure, scaler=None):
        returned = self.recorder.watch(closure, scaler=scaler)()
        loss = returned[0] if isinstance(returned, tuple) else returned
        (loss if scaler is None else scaler.scale(loss)).backward()
        if isinstance(returned, tuple):
            return tuple(item.detach() for item in returned)
        return returned.detach()


def numbers(path):
    with lsmooth.Trace(path) as trace:
        return {name: trace.read(name) for name in ("step", "status", "loss", "loss_along", "loss_next", "lr",
                "grad_norm", "step_norm", "grad_diff", "coordinate/grad", "coordinate/grad_along")}  # fmt: skip


def assert_same(one, other):
    one, other = numbers(one), numbers(other)
    assert len(one["step"]) > 0
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.mark.parametrize("name", LOOPS)
def test_every_loop_is_measured_as_with_recorder_backward_and_not_changed(name, tmp_path):
    states = {}
    for kind, watch in {
        "bare": Bare(),
        "recorded": Recorded(tmp_path / "recorded.h5"),
        "watched": Watched(tmp_path / "watched.h5"),
    }.items():
        seed_all()
        states[kind] = everything(*LOOPS[name](watch))
    assert differences(states["bare"], states["watched"]) == []
    assert_same(tmp_path / "recorded.h5", tmp_path / "watched.h5")


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


class Classifier(nn.Module):
    """A model whose forward returns its loss, in one of the usual ways."""

    def __init__(self, kind="attribute", *extra):
        super().__init__()
        self.inner = mlp(nn.Dropout(0.2), nn.BatchNorm1d(8))
        self.kind = kind

    def forward(self, inputs, targets=None):
        logits = self.inner(inputs)
        if targets is None:
            return Output(None, logits)
        loss = nn.functional.cross_entropy(logits, targets)
        return {
            "attribute": Output(loss, logits),
            "item": {"loss": loss, "logits": logits},
            "first": (loss, logits),
            "alone": loss,
        }[self.kind]

    def loss(self, inputs, targets):
        returned = self(inputs, targets)
        return {
            "attribute": lambda: returned.loss,
            "item": lambda: returned["loss"],
            "first": lambda: returned[0],
            "alone": lambda: returned,
        }[self.kind]()


def unchanged_loop(model, optimizer, scheduler=None, *, zero_grad_after_forward=False, parts=3):
    """Gradient accumulation, clipping, an evaluation now and then."""
    for step in range(5):
        if not zero_grad_after_forward:
            optimizer.zero_grad()
        for i in range(parts):
            x, y = batches(1, seed=10 * step + i)[0]
            loss = model.loss(x, y) / parts
            if zero_grad_after_forward and i == 0:
                optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        with torch.no_grad():
            model(x, y)
        model(x)
    return model, optimizer


def closure_loop(model, optimizer, recorder, parts=3):
    """The same with `recorder.backward`."""
    for step in range(5):
        optimizer.zero_grad()
        for i in range(parts):
            x, y = batches(1, seed=10 * step + i)[0]
            recorder.backward(lambda x=x, y=y: model.loss(x, y) / parts)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        with torch.no_grad():
            model(x, y)
        model(x)


@pytest.mark.parametrize("kind", ["attribute", "item", "first", "alone"])
@pytest.mark.parametrize("zero_grad_after_forward", [False, True])
def test_an_unchanged_loop_over_a_model_that_returns_its_loss(kind, zero_grad_after_forward, tmp_path):
    seed_all()
    model = Classifier(kind)
    bare = everything(*unchanged_loop(model, sgd(model), zero_grad_after_forward=zero_grad_after_forward))
    seed_all()
    model = Classifier(kind)
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "watched.h5").watch_forward():
        unchanged_loop(model, optimizer, zero_grad_after_forward=zero_grad_after_forward)
    assert differences(bare, everything(model, optimizer)) == []
    seed_all()
    model = Classifier(kind)
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "recorded.h5") as recorder:
        closure_loop(model, optimizer, recorder)
    # The factor 1/3 is applied to the loss in one, to the gradient in the other: equal to rounding.
    one, other = numbers(tmp_path / "watched.h5"), numbers(tmp_path / "recorded.h5")
    assert len(one["step"]) == 5
    for name, values in one.items():
        scale = np.abs(other[name]).max()
        np.testing.assert_allclose(values, other[name], rtol=1e-5, atol=1e-6 * scale, err_msg=name)


def test_a_gradient_scaler_is_taken_out_of_what_is_measured(tmp_path):
    def run(watch):
        seed_all()
        model = mlp()
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler(device_type(), init_scale=2.0**14) if watch else None
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{watch}.h5") as recorder:
            compute = recorder.watch(classify, scaler=scaler)
            for x, y in batches(4):
                optimizer.zero_grad()
                for half in (slice(0, 4), slice(4, 8)):
                    loss = compute(model, x[half], y[half]) / 2
                    (scaler.scale(loss) if watch else loss).backward()
                if watch:
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
        return numbers(tmp_path / f"{watch}.h5")

    one, other = run(True), run(False)
    assert (one["status"] == 1).all()
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=1e-6, err_msg=name)


def test_two_losses_in_one_backward(tmp_path):
    def run(watch):
        seed_all()
        model = mlp()
        optimizer = sgd(model)
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{watch}.h5") as recorder:
            if watch:
                compute = recorder.watch(classify)
            for x, y in batches(4):
                optimizer.zero_grad()
                if watch:
                    (2 * compute(model, x, y) + 0.5 * compute(model, -x, y)).backward()
                else:
                    recorder.backward(lambda x=x, y=y: 2 * classify(model, x, y) + 0.5 * classify(model, -x, y))
                optimizer.step()
        return numbers(tmp_path / f"{watch}.h5")

    one, other = run(True), run(False)
    assert (one["status"] == 1).all()
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_a_term_that_the_watched_function_does_not_compute_is_warned_about(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    compute = recorder.watch(classify)
    for x, y in batches(3):
        optimizer.zero_grad()
        (compute(model, x, y) + sum(p.square().sum() for p in model.parameters())).backward()
        optimizer.step()
    with pytest.warns(UserWarning, match="adds terms to the loss that are not watched"):
        recorder.close()


@pytest.mark.parametrize("every", [1, 3])
def test_skipped_attempts_keep_their_place_in_the_count(every, tmp_path):
    """A loop that passes over a step after backward: the index counts attempts, as with `recorder.backward`."""

    def run(watch):
        seed_all()
        model = mlp()
        optimizer = sgd(model)
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{watch}.h5", every=every) as recorder:
            compute = recorder.watch(classify) if watch else None
            for i, (x, y) in enumerate(batches(10)):
                optimizer.zero_grad()
                if watch:
                    compute(model, x, y).backward()
                else:
                    recorder.backward(lambda x=x, y=y: classify(model, x, y))
                if i % 4 == 2:
                    continue
                optimizer.step()
        return tmp_path / f"{watch}.h5"

    assert_same(run(True), run(False))


def test_steps_that_return_no_loss_are_passed_over(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model, momentum=0.9)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        compute = recorder.watch(lambda x, y, skip: None if skip else classify(model, x, y))
        for i, (x, y) in enumerate(batches(6)):
            optimizer.zero_grad()
            loss = compute(x, y, i == 3)
            if loss is not None:
                loss.backward()
            optimizer.step()
    assert numbers(tmp_path / "run.h5")["step"].tolist() == [0, 1, 2, 4, 5]


def test_containers_that_the_function_empties_are_full_again_in_replays(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)

    def compute(batch):
        targets = batch.pop("targets")
        return classify(model, batch["inputs"], targets)

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        watched = recorder.watch(compute)
        for x, y in batches(3):
            optimizer.zero_grad()
            batch = {"inputs": x, "targets": y}
            watched(batch).backward()
            optimizer.step()
            assert list(batch) == ["inputs"]
    assert numbers(tmp_path / "run.h5")["status"].tolist() == [1, 1, 1]


def test_replays_can_be_told_from_training(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    entered = []
    calls = not_put_back(seen=())

    def compute(x, y):
        calls.seen = (*calls.seen, replaying())
        return classify(model, x, y)

    @contextlib.contextmanager
    def aside():
        entered.append(True)
        yield

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", gammas=[0.5]) as recorder:
        watched = recorder.watch(compute, during_replay=aside)
        for x, y in batches(2):
            optimizer.zero_grad()
            watched(x, y).backward()
            optimizer.step()
    # The first measured step is checked at gamma = 0 too.
    assert calls.seen == (False, True, True, True, False, True, True)
    assert entered == [True] * 5
    assert not replaying()


def test_a_step_whose_closure_computes_the_gradient(tmp_path):
    """Frameworks hand their forward and backward to `optimizer.step` as a closure."""

    def run(in_step):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        optimizer = sgd(model, momentum=0.9)
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{in_step}.h5", every=2) as recorder:
            compute = recorder.watch(classify)
            for x, y in batches(6):

                def closure(x=x, y=y):
                    loss = compute(model, x, y)
                    optimizer.zero_grad()
                    loss.backward()
                    return loss

                if in_step:
                    optimizer.step(closure=closure)
                else:
                    closure()
                    optimizer.step()
        return everything(model, optimizer)

    assert differences(run(False), run(True)) == []
    assert_same(tmp_path / "False.h5", tmp_path / "True.h5")


def test_an_exception_inside_backward_leaves_no_hooks_and_the_next_attempt_is_measured(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)

    def explode(_):
        raise FloatingPointError("mine")

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        compute = recorder.watch(classify)
        for i, (x, y) in enumerate(batches(3)):
            handle = model[0].weight.register_hook(explode) if i == 1 else None
            optimizer.zero_grad()
            loss = compute(model, x, y)
            if handle is not None:
                with pytest.raises(FloatingPointError):
                    loss.backward()
                handle.remove()
                optimizer.zero_grad()
                loss = compute(model, x, y)
            loss.backward()
            optimizer.step()
    assert numbers(tmp_path / "run.h5")["status"].tolist() == [1, 1, 1]
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_nothing_in_a_watched_step_waits_for_the_device(tmp_path):
    seed_all()
    model = Classifier()
    optimizer = sgd(model)
    heard = []
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", log=lambda *scalar: heard.append(scalar))
    with recorder.watch_forward():
        with CountsWaits() as counts:
            for x, y in batches(4):
                optimizer.zero_grad()
                model(x, y).loss.backward()
                optimizer.step()
        recorder.flush()
    assert counts.seen == []
    assert [step for name, _, step in heard if name.endswith("smoothness")] == [0, 1, 2, 3]


# --- what it refuses ---


def one_step(recorder, loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_a_loss_computed_elsewhere_is_refused(tmp_path):
    model = Classifier()
    optimizer = sgd(model)
    (x, y) = batches(1)[0]
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5").watch_forward() as recorder:
        loss = nn.functional.cross_entropy(model(x).logits, y)
        with pytest.raises(RecorderError, match="no backward pass came from a loss"):
            one_step(recorder, loss, optimizer)


def test_a_model_that_is_copied_or_saved_whole_leaves_the_watch_behind(tmp_path):
    model = Classifier("alone")
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5").watch_forward() as recorder:
        for x, y in batches(3):
            optimizer.zero_grad()
            loss = model(x, y)
            teacher = copy.deepcopy(model)
            # The recorder must ignore its loss, though it is computed between the model's loss and the step.
            teacher(x, y).backward()
            loss.backward()
            optimizer.step()
        saved = pickle.dumps(model)
    assert b"lsmooth" not in saved
    assert torch.equal(pickle.loads(saved).eval()(x, y), model.eval()(x, y))
    assert recorder.step == 3
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 3}


def test_inputs_overwritten_before_the_step_are_refused(tmp_path):
    model = Classifier()
    optimizer = sgd(model)
    # Small inputs are remembered, see tests/replay/test_contents.py.
    (x, y) = (part.repeat(2000, *[1] * (part.ndim - 1)) for part in batches(1)[0])
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5").watch_forward():
        model(x, y).loss.backward()
        x.zero_()
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(RecorderError, match="overwritten in place"):
            optimizer.step()
    # The step itself was taken, and the parameters are where it left them.
    assert any(not torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


def test_a_step_that_calls_its_closure_twice_is_refused(tmp_path):
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    model = mlp()
    optimizer = Twice(model.parameters(), lr=0.1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        compute = recorder.watch(classify)
        (x, y) = batches(1)[0]

        def closure():
            optimizer.zero_grad()
            loss = compute(model, x, y)
            loss.backward()
            return loss

        with pytest.raises(RecorderError, match="called its closure twice"):
            optimizer.step(closure)


def test_a_closed_recorder_watches_nothing(tmp_path):
    model = Classifier()
    optimizer = sgd(model)
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5").watch_forward()
    compute = recorder.watch(classify)
    recorder.close()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    (x, y) = batches(1)[0]
    compute(model.inner, x, y).backward()
    optimizer.step()
