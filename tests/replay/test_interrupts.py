"""Signals that Python handles wait until the model is where training left it."""

import os
import signal

import pytest
import torch
from loops import batches, classify, mlp, sgd

import lsmooth
from lsmooth.replay.interrupts import DeferredSignals


@pytest.fixture
def handled():
    """Return a function that handles signals in Python until the test is over."""
    before = {}

    def handle(number, function):
        before[number] = signal.signal(number, function)

    yield handle
    for number, function in before.items():
        signal.signal(number, function)


def strike(number):
    os.kill(os.getpid(), number)
    # Python runs handlers at the next opportunity: right here.
    for _ in range(100):
        pass


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGALRM])
def test_a_checkpoint_saved_by_a_handler_holds_the_weights_after_the_step(number, tmp_path, handled):
    model = mlp()
    optimizer = sgd(model)
    saved, struck = [], type("Struck", (), {"calls": 0})
    handled(number, lambda *_: saved.append([p.detach().clone() for p in model.parameters()]))
    mine = signal.getsignal(number)

    def closure(x, y):
        struck.calls += 1
        if struck.calls > 1:
            strike(number)
        return classify(model, x, y)

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        (x, y), *_ = batches(1)
        recorder.backward(lambda: closure(x, y))
        optimizer.step()
    assert struck.calls == 8
    (weights,) = saved
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert signal.getsignal(number) is mine
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 1}


def test_all_signals_are_delivered_in_their_order_though_one_handler_raises(handled):
    seen = []

    def ends(number, frame):
        seen.append(number)
        raise SystemExit

    handled(signal.SIGTERM, ends)
    handled(signal.SIGUSR1, lambda number, frame: seen.append(number))
    with pytest.raises(SystemExit), DeferredSignals():  # noqa: PT012
        strike(signal.SIGTERM)
        strike(signal.SIGUSR1)
        strike(signal.SIGUSR1)
        assert seen == []
    assert seen == [signal.SIGTERM, signal.SIGUSR1]
    assert signal.getsignal(signal.SIGTERM) is ends


def test_ctrl_c_strikes_where_it_is_allowed_and_nowhere_else():
    reached = []
    with pytest.raises(KeyboardInterrupt), DeferredSignals() as signals:  # noqa: PT012
        strike(signal.SIGINT)
        reached.append("deferred")
        with signals.allowed():
            reached.append("allowed")
    assert reached == ["deferred"]
    with pytest.raises(KeyboardInterrupt), DeferredSignals() as signals, signals.allowed():  # noqa: PT012
        strike(signal.SIGINT)
        reached.append("allowed")
    assert reached == ["deferred"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("calls", [1, 2])
def test_an_exception_while_signals_are_taken_over_leaves_none_of_them_taken(calls, monkeypatch, handled):
    handled(signal.SIGUSR1, lambda *_: None)
    mine = signal.getsignal(signal.SIGUSR1)
    original, made = signal.signal, []

    def fails(number, handler):
        made.append(number)
        if len(made) == calls:
            raise KeyboardInterrupt
        return original(number, handler)

    monkeypatch.setattr(signal, "signal", fails)
    with pytest.raises(KeyboardInterrupt), DeferredSignals():
        pass
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGUSR1) is mine
