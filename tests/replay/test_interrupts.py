"""Signals that Python handles wait until the model is where training left it."""

import linecache
import os
import random
import signal
import sys

import pytest
import torch
from loops import batches, classify, mlp, not_put_back, sgd

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
    saved, struck = [], not_put_back(calls=0)
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


def interrupted_at(calls):
    """Return `signal.signal` with a Ctrl-C at one of its calls."""
    original, made = signal.signal, []

    def interrupted(number, handler):
        made.append(number)
        if len(made) == calls:
            raise KeyboardInterrupt
        return original(number, handler)

    return interrupted


@pytest.mark.parametrize("calls", [1, 2])
def test_an_exception_while_signals_are_taken_over_leaves_none_of_them_taken(calls, monkeypatch, handled):
    handled(signal.SIGUSR1, lambda *_: None)
    mine = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(signal, "signal", interrupted_at(calls))
    with pytest.raises(KeyboardInterrupt), DeferredSignals():
        pass
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGUSR1) is mine


@pytest.mark.parametrize("calls", [1, 2])
def test_an_exception_while_signals_are_given_back_leaves_none_of_them_taken(calls, monkeypatch, handled):
    handled(signal.SIGUSR1, lambda *_: None)
    mine = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt), DeferredSignals():
        monkeypatch.setattr(signal, "signal", interrupted_at(calls))
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGUSR1) is mine


# --- Ctrl-C at any line of a measured step ---

PACKAGE = os.path.dirname(lsmooth.__file__)


class Striking:
    """Counts the lines of lsmooth that are run in a block, and presses Ctrl-C at one of them."""

    def __init__(self, line=None):
        self.line, self.count, self.place = line, 0, ""

    def __enter__(self):
        sys.settrace(self.traced)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def traced(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.line:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self.traced


def moment(model):
    """All that a measured step moves, at one moment."""
    return [
        *(p.detach().clone() for p in model.parameters()),
        *(torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()),
        *(buffer.clone() for buffer in model.buffers()),
        torch.get_rng_state(),
    ]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def struck(path, way, phase, line=None):
    """Train two steps, pressing Ctrl-C in the second; return what was found, and the moments of training itself."""
    torch.manual_seed(0)
    model = mlp(torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2))
    optimizer = sgd(model, momentum=0.9)
    (x, y), *_ = batches(1)
    recorder = lsmooth.Recorder(model, optimizer, path, mode="w")
    watched = recorder.watch(classify) if way == "watch" else None

    def backward():
        if watched is None:
            recorder.backward(lambda: classify(model, x, y))
        else:
            watched(model, x, y).backward()

    strike = Striking(line)
    moments = []
    try:
        for step in range(2):
            optimizer.zero_grad()
            moments.append(moment(model))
            with strike if step and phase == "backward" else Striking():
                backward()
            moments.append(moment(model))
            with strike if step and phase == "step" else Striking():
                optimizer.step()
        raised = False
    except KeyboardInterrupt:
        raised = True
    found = moment(model)
    handler = signal.getsignal(signal.SIGINT)
    recorder.close()
    hooks = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    return strike, raised, found, moments, (hooks, handler)


@pytest.mark.parametrize("way", ["backward", "watch"])
def test_ctrl_c_at_any_line_of_a_measured_step_leaves_the_weights_before_or_after_it(way, tmp_path):
    strike, raised, after, moments, _ = struck(tmp_path / "run.h5", way, "step")
    assert not raised
    assert strike.count > 5000
    for line in sorted(random.Random(0).sample(range(1, strike.count + 1), 20)):
        strike, raised, found, moments, left = struck(tmp_path / "run.h5", way, "step", line)
        assert raised, strike.place
        assert equal(found, moments[-1]) or equal(found, after), strike.place
        assert left == (0, signal.default_int_handler), strike.place


@pytest.mark.parametrize("way", ["backward", "watch"])
def test_ctrl_c_in_a_backward_pass_leaves_the_weights_and_no_hook(way, tmp_path):
    strike, *_ = struck(tmp_path / "run.h5", way, "backward")
    parameters = len(list(mlp(torch.nn.BatchNorm1d(8)).parameters()))
    for line in sorted(random.Random(1).sample(range(1, strike.count + 1), 20)):
        strike, raised, found, moments, left = struck(tmp_path / "run.h5", way, "backward", line)
        assert raised, strike.place
        # Gradients are where the pass has got to, as without a recorder.
        assert equal(found[:parameters], moments[-1][:parameters]), strike.place
        assert left[1] is signal.default_int_handler, strike.place
        # Python cannot protect the moment before the first line of a `finally`.
        path, _, number = strike.place.rpartition(":")
        assert left[0] == 0 or linecache.getline(path, int(number)).strip() in ("try:", "finally:"), strike.place
