"""The recorder itself: its attributes, its messages, and what it leaves behind."""

import contextlib
import weakref
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from loops import (
    batches,
    classify,
    seed_all,
    sgd,
    train,
)
from torch import nn

import lsmooth

pytestmark = pytest.mark.usefixtures("device")


def test_a_closed_recorder_is_not_kept_alive(tmp_path, model):
    optimizer = sgd(model)
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    train(recorder, model, optimizer, 1)
    recorder.close()
    recorder.close()
    reference = weakref.ref(recorder)
    del recorder
    import gc

    gc.collect()
    assert reference() is None


def test_a_loop_goes_on_with_a_closed_recorder(tmp_path, model):
    optimizer = sgd(model)
    recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    recorder.close()
    before = model[0].weight.detach().clone()
    train(recorder, model, optimizer, 2)
    assert not torch.equal(model[0].weight, before)
    assert len(lsmooth.Trace(tmp_path / "run.h5")) == 0


def test_no_gradient_copies_are_held_between_steps(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        train(recorder, model, optimizer, 2)
        assert not recorder._stepping.attempts.begun


def test_reprs_say_what_there_is(tmp_path, model):
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        train(recorder, model, optimizer, 2)
        assert "4 parameter tensors, next step 2" in repr(recorder)
    assert "closed" in repr(recorder)
    assert "2 measured steps, 2 of them well" in repr(lsmooth.Trace(tmp_path / "run.h5"))


def test_time_goes_on_when_a_run_is_resumed(tmp_path, monkeypatch):
    """Seconds of the run, as if there had been no gap; from the last row kept, where the checkpoint knows no time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lsmooth.measure.recording.time", SimpleNamespace(monotonic=lambda: clock.now))

    def run(first, last, mode, state=None):
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", mode=mode) as recorder:
            if state is not None:
                recorder.load_state_dict(state)
            for step in range(first, last):
                clock.now += 10
                optimizer.zero_grad()
                recorder.backward(lambda: model(torch.ones(2, 3)).square().mean())
                optimizer.step()
                if step == 4:
                    clock.now += 2
                    state = recorder.state_dict()
        return state

    state = run(0, 8, "x")
    clock.now += 1000
    run(5, 7, "a", state)
    np.testing.assert_array_equal(lsmooth.Trace(tmp_path / "run.h5").time, [10, 20, 30, 40, 50, 62, 72])
    clock.now += 1000
    run(5, 6, "a", {"step": 5})
    np.testing.assert_array_equal(lsmooth.Trace(tmp_path / "run.h5").time, [10, 20, 30, 40, 50, 60])
    clock.now += 1000
    run(6, 7, "a")
    np.testing.assert_array_equal(lsmooth.Trace(tmp_path / "run.h5").time, [10, 20, 30, 40, 50, 60, 70])


@pytest.fixture(params=[torch.float64, torch.bfloat16, "meta"], ids=str)
def other_default(request):
    """A context in which tensors are made with another dtype, or elsewhere, unless they are told."""

    @contextlib.contextmanager
    def context():
        if isinstance(request.param, str):
            with torch.device(request.param):
                yield
        else:
            before = torch.get_default_dtype()
            torch.set_default_dtype(request.param)
            yield
            torch.set_default_dtype(before)

    return context


@pytest.mark.parametrize("arguments", [{}, {"norms": ("linf", "spectral"), "densities": True}, {"probe": 2}])
def test_torchs_defaults_for_new_tensors_do_not_matter(arguments, other_default, tmp_path):
    def numbers(name, context):
        seed_all()
        # One layer is large enough to be taken in pieces.
        model = nn.Sequential(nn.Linear(6, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 3))
        optimizer = sgd(model)
        given = dict(arguments)
        if "probe" in given:
            given["probe"] = [lambda x=x, y=y: classify(model, x, y) for x, y in batches(given["probe"])]
        data = batches(3)
        with context(), lsmooth.Recorder(model, optimizer, tmp_path / name, **given) as recorder:
            for x, y in data:
                optimizer.zero_grad()
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
                optimizer.step()
        with h5py.File(tmp_path / name) as file:
            found = {}
            file.visititems(lambda path, item: found.update({path: item[()]} if isinstance(item, h5py.Dataset) else {}))
        # Clock times differ; newest rows are kept a second time, with theirs.
        return {path: values for path, values in found.items() if path not in ("time", "recent/rows")}

    expected, found = numbers("as_ever.h5", contextlib.nullcontext), numbers("other.h5", other_default)
    assert {"grad_diff", "step_norm", "coordinate/grad_along"} <= expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_recorder_shows_itself_in_a_notebook(tmp_path, model):
    optimizer = sgd(model)
    path = tmp_path / "<b>run&.h5"
    with lsmooth.Recorder(model, optimizer, path, every=2) as recorder:
        assert "last well measured" not in recorder._repr_html_()
        train(recorder, model, optimizer, 3)
        recorder.flush()
        shown = recorder._repr_html_()
        assert "recording" in shown
        for text in ("SGD", "every 2 steps", ">3<", "step 2: loss", "4 parameter tensors", "none"):
            assert text in shown
        assert "&lt;b&gt;run&amp;.h5" in shown
        assert "<b>run" not in shown
    assert "closed" in recorder._repr_html_()


def test_a_recorder_that_cannot_be_made_leaves_no_file_locked(tmp_path, model, monkeypatch):
    def fails(*arguments):
        raise MemoryError

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monkeypatch.context() as patched:
        patched.setattr(lsmooth.recorder, "Instrument", fails)
        with pytest.raises(MemoryError):
            lsmooth.Recorder(model, optimizer, tmp_path / "run.h5")
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.state == "complete"
    lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", mode="a").close()
