"""Deep nesting of any depth ends no training: arguments, outputs, metadata, operations in a row."""

import pytest
import torch
from loops import batches, classify, mlp, sgd
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError, RecorderError

DEEP = 5000


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"inside": value}
    return value


def test_arguments_of_a_watched_function_and_outputs_of_a_closure(tmp_path):
    model = mlp()
    optimizer = sgd(model)
    deep = nested(DEEP)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        watched = recorder.watch(lambda x, y, more: classify(model, x, y))
        for i, (x, y) in enumerate(batches(4)):
            optimizer.zero_grad()
            if i % 2:
                watched(x, y, deep).backward()
            else:
                _, returned = recorder.backward(lambda x=x, y=y: (classify(model, x, y), deep))
                assert returned is deep
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 4}


def test_metadata_is_refused_in_a_sentence(tmp_path):
    model = mlp()
    with pytest.raises(InvalidArgumentError, match="metadata is nested too deeply for JSON"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", metadata=nested(DEEP))
    assert not list(tmp_path.iterdir())
    with lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", metadata=nested(100)):
        pass
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.metadata["user_metadata"] == nested(100)


@pytest.mark.parametrize("count", [20, DEEP])
def test_operations_between_a_model_and_a_criterion(count, tmp_path):
    model = mlp()
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        criterion = recorder.watch(model, nn.CrossEntropyLoss())
        output = model(x)
        for _ in range(count):
            output = output * 0.999
        criterion(output, y).backward()
        assert torch.isfinite(model[0].weight.grad).all()
        if count == DEEP:
            with pytest.raises(RecorderError, match=r"has a graph from outside the watched calls .*MulBackward0"):
                optimizer.step()
        else:
            optimizer.step()
