"""A closure that reads what was computed before it: the variable is named, whatever kind of closure it is."""

import functools

import pytest
import torch
from loops import classify, mlp, seed_all, sgd
from torch import nn

import lsmooth
from lsmooth.errors import RecorderError
from lsmooth.replay.outside import graphs_read, made_outside

DATA, TARGETS = torch.ones(8, 6), torch.zeros(8, dtype=torch.long)


def loss_of(prediction, targets=TARGETS):
    return nn.functional.cross_entropy(prediction, targets)


class Holder:
    def __init__(self, prediction):
        self.prediction = prediction

    def loss(self):
        return loss_of(self.prediction)


def closures(prediction):
    return {
        "prediction": lambda: loss_of(prediction),
        "given": lambda given=prediction: loss_of(given),
        "parts": lambda parts=[prediction, prediction]: loss_of(parts[0]),
        "1": functools.partial(loss_of, prediction),
        "self.prediction": Holder(prediction).loss,
    }


@pytest.mark.parametrize("name", closures(None))
def test_the_variable_is_named(name):
    closure = closures(mlp()(DATA))[name]
    assert f"reads {name}, whose graph was made outside of it" in made_outside(graphs_read(closure), closure())


def test_nothing_is_said_of_a_variable_that_is_detached_or_not_read():
    model = mlp()
    prediction = model(DATA)
    for closure in (
        lambda: classify(model, DATA, TARGETS) + prediction.detach().mean(),
        lambda: classify(model, DATA, TARGETS) if prediction is not None else None,
    ):
        assert made_outside(graphs_read(closure), closure()) is None


def test_training_goes_on_until_the_step_is_to_be_measured(tmp_path):
    seed_all()
    model = mlp()
    with lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5") as recorder:
        prediction = model(DATA)
        assert recorder.backward(lambda: loss_of(prediction)) > 0
        assert all(p.grad is not None for p in model.parameters())


def test_it_is_said_at_the_first_step(tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        prediction = model(DATA)
        recorder.backward(lambda: loss_of(prediction))
        with pytest.raises(RecorderError, match="reads prediction, whose graph was made outside"):
            optimizer.step()


class Keeping:
    """Keeps its outputs where a closure's variables can be seen to hold them, as people do for their logs."""

    def __init__(self, model):
        self.model, self.output, self.outputs = model, None, {}

    def loss(self):
        self.output = self.outputs["last"] = self.model(DATA)
        return loss_of(self.output)


def outputs_kept(model):
    """Return closures that keep their output, by where."""
    output, outputs, keeping = None, [], Keeping(model)

    def in_nonlocal():
        nonlocal output
        output = model(DATA)
        return loss_of(output)

    def in_global():
        global kept
        kept = model(DATA)
        return loss_of(kept)

    def in_list():
        outputs.append(model(DATA))
        return loss_of(outputs[-1])

    return {"nonlocal": in_nonlocal, "global": in_global, "list": in_list, "attribute": keeping.loss}


kept = None


@pytest.mark.parametrize("where", outputs_kept(None))
def test_a_closure_may_keep_its_own_output(where, tmp_path):
    seed_all()
    model = mlp()
    optimizer = sgd(model)
    closure = outputs_kept(model)[where]
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            recorder.backward(closure)
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 4}
