"""What names a trace's file: text, a path, or bytes; all else is refused in one sentence, at every door."""

import io
import os

import pytest
import torch
from small_run import train

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.integrations.successive import SuccessivePaths


def recorder(path):
    model = torch.nn.Linear(2, 1)
    return lsmooth.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), path)


DOORS = {"recorder": recorder, "trace": lsmooth.Trace, "callback": lambda path: SuccessivePaths(path, "x")}


@pytest.mark.parametrize("kind", [str, os.fsencode, os.fspath, lambda path: path])
def test_a_run_is_recorded_and_read_at_any_kind_of_path(kind, tmp_path):
    path = kind(tmp_path / "run.h5")
    train(path, 3)
    with lsmooth.Trace(path) as trace:
        assert trace.path == tmp_path / "run.h5"
        assert len(trace) == 3
    assert SuccessivePaths(path, "x").begin(resumed=False) == (str(tmp_path / "run.h5"), "x")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("path", [5, None, io.BytesIO(), ["run.h5"]])
def test_what_is_no_path_is_refused(path, door):
    with pytest.raises(InvalidArgumentError, match=r"path text or a pathlib\.Path, not \w+; give it as"):
        DOORS[door](path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("path", ["run\0.h5", b"run\0.h5"])
def test_a_null_character_is_refused(path, door):
    with pytest.raises(InvalidArgumentError, match=r"holds a null character"):
        DOORS[door](path)


@pytest.mark.parametrize("door", DOORS)
def test_what_the_file_system_cannot_encode_is_refused(door):
    with pytest.raises(
        InvalidArgumentError, match=r"'run\\ud800\.h5' has characters that .* encoding is utf-8; choose"
    ):
        DOORS[door]("run\ud800.h5")
