"""After an exception or Ctrl-C at any moment of a measurement, everything is as after the step."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from loops import Bare, Recorded, batches, classify, differences, everything, mlp, not_put_back, seed_all, sgd
from torch import nn

import lsmooth

pytestmark = pytest.mark.usefixtures("device")


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("at", range(1, 9))
def test_an_exception_in_a_replay_leaves_everything_as_after_the_step(kind, at, tmp_path):
    def run(record):
        seed_all()
        model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        optimizer = sgd(model, momentum=0.9)
        watch = Recorded(tmp_path / f"{at}.h5") if record else Bare()
        watch.attach(model, optimizer)
        calls = not_put_back(made=0)
        for x, y in batches(3):

            def closure(x=x, y=y):
                calls.made += 1
                # Evaluations of the first step: the step's own, one at x_t, five between, one at x_{t+1}.
                if record and calls.made == at:
                    torch.rand(1), np.random.rand(), random.random()
                    raise kind
                return classify(model, x, y)

            optimizer.zero_grad()
            if record and at == 1 and calls.made == 0:
                # The step's own forward pass fails, as it would without a recorder.
                with pytest.raises(kind):
                    watch.backward(closure)
                watch.end()
                return None
            watch.backward(closure)
            fails = record and 2 <= at <= 8 and calls.made == 1
            # Where not even x_t can be evaluated again, nothing can be measured, which the first step says.
            if fails and (kind is KeyboardInterrupt or at == 2):
                with pytest.raises(kind):
                    optimizer.step()
            elif fails:
                with pytest.warns(UserWarning, match="Step 0 is flagged, since its loss could not be evaluated again"):
                    optimizer.step()
            else:
                optimizer.step()
        watch.end()
        return everything(model, optimizer)

    recorded = run(True)
    trace = lsmooth.Trace(tmp_path / f"{at}.h5")
    if at == 1:
        assert recorded is None
        assert len(trace) == 0
        return
    assert differences(run(False), recorded) == []
    if kind is KeyboardInterrupt or at == 2:
        assert trace.steps.tolist() == [1, 2]
        assert trace.status_counts() == {"measured": 2}
    else:
        assert trace.steps.tolist() == [0, 1, 2]
        assert trace.status_counts() == {"measured": 2, "non_finite": 1, "not_repeated": 1}
        assert np.isfinite(trace.loss).all()
        assert np.isnan(trace.read("grad_norm")[0]).all()


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_an_exception_inside_a_backward_pass_leaves_everything_as_after_the_step(at, tmp_path):
    calls = not_put_back(made=0)

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            calls.made += 1
            if calls.made == at:
                raise Stop
            return gradient

    def run(path):
        seed_all()
        model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        optimizer = sgd(model, momentum=0.9)
        recorder = lsmooth.Recorder(model, optimizer, path, densities=True) if path else None
        for i, (x, y) in enumerate(batches(3)):
            calls.made = 0 if path and i == 0 else 100

            def closure(x=x, y=y):
                # Gradients of the last layer have arrived, and been consumed, when it fails.
                return nn.functional.cross_entropy(model[4](model[3](Fails.apply(model[:3](x)))), y)

            optimizer.zero_grad()
            if recorder is None:
                closure().backward()
            elif at == 1 and i == 0:
                with pytest.raises(Stop):
                    recorder.backward(closure)
                # The loop passes the batch over.
                continue
            else:
                recorder.backward(closure)
            if i == 0 and recorder is not None and at == 2:
                with pytest.raises(Stop):
                    optimizer.step()
            elif i == 0 and recorder is not None:
                with pytest.warns(UserWarning, match="could not be evaluated again, and training goes on: Stop"):
                    optimizer.step()
            else:
                optimizer.step()
        if recorder is not None:
            recorder.close()
        return everything(model, optimizer)

    recorded = run(tmp_path / "run.h5")
    if at > 1:
        assert differences(run(None), recorded) == []
    trace = lsmooth.Trace(tmp_path / "run.h5")
    flagged = {"non_finite": 1, "not_repeated": 1} if at > 2 else {}
    assert trace.status_counts() == {"measured": 2, **flagged}
    assert trace.density("0.weight").steps == 2


@pytest.mark.parametrize("moment", ["move_to", "put_back"])
def test_ctrl_c_between_evaluations_waits_until_all_is_back(moment, tmp_path, monkeypatch, model):
    from lsmooth.replay.segment import Segment

    original = getattr(Segment, moment)
    struck = []

    def strike(self, *arguments):
        if not struck:
            struck.append(moment)
            os.kill(os.getpid(), signal.SIGINT)
            # Python runs signal handlers at the next opportunity: right here.
            for _ in range(100):
                pass
        return original(self, *arguments)

    monkeypatch.setattr(Segment, moment, strike)
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        (x, y), *_ = batches(1)
        optimizer.zero_grad()
        recorder.backward(lambda: classify(model, x, y))
        expected = [p.detach() - 0.3 * p.grad for p in model.parameters()]
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert struck == [moment]
    for got, want in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), want)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
