"""Counts of all coordinates, against numpy on the same coordinates followed one by one."""

import shutil

import h5py
import numpy as np
import pytest
import torch
from loops import (
    Bare,
    Recorded,
    accumulation,
    batches,
    channels_last,
    classify,
    device_type,
    differences,
    double_precision,
    dropout,
    everything,
    mlp,
    not_put_back,
    seed_all,
    sgd,
    simple,
)
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError

pytestmark = pytest.mark.usefixtures("device")

EVERYTHING = 10**6


def expected_counts(trace, parameter):
    """Count the points of the coordinates of one tensor, all of which the trace follows."""
    cloud, owner = trace.cloud("coordinate"), trace.coordinates["parameter"].to_numpy()
    density = trace.density(parameter)
    mine = (owner == parameter)[None, :] & cloud.usable
    found, _, _ = np.histogram2d(
        cloud.grad_norm[mine], cloud.smoothness[mine], bins=(density.grad_edges, density.smoothness_edges)
    )
    return found


def assert_counts_agree(trace, exact=True):
    sizes = dict(zip(trace.parameters, trace.parameter_sizes, strict=True))
    well = int((trace.status == 1).sum())
    for parameter in trace.parameters:
        density, expected = trace.density(parameter), expected_counts(trace, parameter)
        assert density.counts.dtype == np.int64
        assert density.steps == well
        assert density.left_out == sizes[parameter] * well - density.counts.sum()
        if exact:
            np.testing.assert_array_equal(density.counts, expected, err_msg=parameter)
        else:
            # In float32 a point may fall to the other side of an edge.
            assert np.abs(density.counts - expected).sum() <= 2 + 0.01 * expected.sum(), parameter
    return sum(int(trace.density(parameter).counts.sum()) for parameter in trace.parameters)


def in_double(watch):
    model = mlp(nn.Dropout(0.2)).double()
    return simple(model, sgd(model), watch, steps=9, dtype=torch.float64)


def double_channels_last(watch):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        model = model.to(memory_format=torch.channels_last)
        optimizer = sgd(model, 0.5)
        watch.attach(model, optimizer)
        for _ in range(4):
            x, y = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last), torch.randint(3, (5,))
            optimizer.zero_grad()
            watch.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        watch.end()
        return model, optimizer
    finally:
        torch.set_default_dtype(previous)


def appearing_and_disappearing(watch):
    """Half of a layer has a gradient only while a weight is on one side of a border, which the steps cross."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
            self.inside = nn.Parameter(torch.randn(6, dtype=torch.float64))
            self.outside = nn.Parameter(torch.randn(6, dtype=torch.float64))

        def forward(self):
            part = self.inside if self.gate > 0 else self.outside
            return part.square().sum() / 2 + self.gate

    model = Gated()
    optimizer = sgd(model, 0.1, momentum=0.5)
    watch.attach(model, optimizer)
    for _ in range(8):
        optimizer.zero_grad(set_to_none=False)
        watch.backward(model)
        optimizer.step()
    watch.end()
    assert model.gate < 0
    return model, optimizer


@pytest.mark.parametrize("loop", [in_double, double_channels_last, appearing_and_disappearing])
def test_counts_of_all_coordinates_agree_with_numpy(loop, tmp_path):
    seed_all()
    loop(Recorded(tmp_path / "run.h5", coordinates=EVERYTHING, densities=True))
    assert assert_counts_agree(lsmooth.Trace(tmp_path / "run.h5")) > 30


@pytest.mark.parametrize("loop", [dropout, accumulation, channels_last])
def test_counts_in_float32_agree_up_to_rounding(loop, tmp_path):
    seed_all()
    loop(Recorded(tmp_path / "run.h5", coordinates=EVERYTHING, densities=True))
    assert assert_counts_agree(lsmooth.Trace(tmp_path / "run.h5"), exact=False) > 100


def test_tensors_larger_than_a_piece_are_counted_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("lsmooth.measure.norms._CPU_PIECE", 7)
    seed_all()
    in_double(Recorded(tmp_path / "run.h5", coordinates=EVERYTHING, densities=True))
    assert_counts_agree(lsmooth.Trace(tmp_path / "run.h5"))


def test_gradients_behind_a_scaler_are_counted_unscaled_and_skipped_steps_not_at_all(tmp_path):
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler(device_type(), init_scale=1024.0)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", coordinates=EVERYTHING, densities=True) as recorder:
        for i, (x, y) in enumerate(batches(6)):
            optimizer.zero_grad()
            factor = float("inf") if i == 2 else 1.0
            recorder.backward(lambda x=x, y=y, k=factor: classify(model, x.double(), y) * k, scaler)
            scaler.step(optimizer)
            scaler.update()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status_counts()["no_displacement"] == 1
    assert assert_counts_agree(trace) > 100


@pytest.mark.parametrize("spoil", ["lr", "nan", "moved"])
def test_flagged_steps_are_not_counted(spoil, tmp_path):
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", coordinates=EVERYTHING, densities=True) as recorder:
        for i, (x, y) in enumerate(batches(5)):
            spoilt = i == 4
            optimizer.param_groups[0]["lr"] = 0.0 if spoilt and spoil == "lr" else 0.3
            optimizer.zero_grad()
            factor = float("nan") if spoilt and spoil == "nan" else 1.0
            recorder.backward(lambda x=x, y=y, k=factor: classify(model, x.double(), y) * k)
            if spoilt and spoil == "moved":
                with torch.no_grad():
                    model[0].weight.mul_(1.5)
            optimizer.step()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.density("0.weight").steps == 4
    assert_counts_agree(trace)


def test_a_step_that_ended_in_an_exception_leaves_nothing_behind(tmp_path):
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    calls = not_put_back(made=0)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", coordinates=EVERYTHING, densities=True) as recorder:
        for i, (x, y) in enumerate(batches(4)):

            def closure(x=x, y=y, first=i == 0):
                calls.made += first
                if first and calls.made == 5:
                    raise KeyError("in the middle")
                return classify(model, x.double(), y)

            optimizer.zero_grad()
            recorder.backward(closure)
            if i == 0:
                with pytest.warns(UserWarning, match="could not be evaluated again"):
                    optimizer.step()
                assert recorder._recording.densities._largest == {}
            else:
                optimizer.step()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.density("0.weight").steps == 3
    assert_counts_agree(trace)


def test_counting_changes_nothing(tmp_path):
    results = []
    for watch in (Bare(), Recorded(tmp_path / "run.h5", densities=True)):
        seed_all()
        results.append(everything(*dropout(watch)))
    assert differences(*results) == []


def test_without_densities_nothing_is_kept_or_written_for_them(tmp_path):
    seed_all()
    watch = Recorded(tmp_path / "run.h5")
    dropout(watch)
    assert watch.recorder._recording.densities is None
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert not trace.has_densities
    with pytest.raises(TraceError, match="record with densities=True"):
        trace.density("0.weight")
    trace.close()
    with h5py.File(tmp_path / "run.h5") as file:
        assert "density" not in file


def test_an_unknown_tensor_is_named_with_those_that_are_close(tmp_path):
    seed_all()
    dropout(Recorded(tmp_path / "run.h5", densities=True))
    with pytest.raises(InvalidArgumentError, match=r"no parameter named '0\.wieght'; did you mean 0\.weight"):
        lsmooth.Trace(tmp_path / "run.h5").density("0.wieght")


# --- in the file ---


def train(recorder, model, optimizer, start, stop):
    for x, y in batches(20)[start:stop]:
        optimizer.zero_grad()
        recorder.backward(lambda x=x, y=y: classify(model, x.double(), y))
        optimizer.step()


@pytest.fixture
def whole(tmp_path):
    """Counts of a run that was never interrupted."""
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "whole.h5", densities=True) as recorder:
        train(recorder, model, optimizer, 0, 12)
    return lsmooth.Trace(tmp_path / "whole.h5").density_counts()


def assert_same(trace, whole):
    assert trace.density_counts().steps == whole.steps == 12
    np.testing.assert_array_equal(trace.density_counts().counts, whole.counts)


def test_counts_go_on_where_a_closed_trace_ended(tmp_path, whole):
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    for start, stop in ((0, 5), (5, 5), (5, 12)):
        with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", densities=True, mode="a") as recorder:
            train(recorder, model, optimizer, start, stop)
    assert_same(lsmooth.Trace(tmp_path / "run.h5"), whole)


@pytest.mark.parametrize("measured_after", [0, 7])
def test_counts_go_back_to_a_checkpoint(measured_after, tmp_path, whole):
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", densities=True) as recorder:
        train(recorder, model, optimizer, 0, 5)
        checkpoint = {
            "model": {name: value.clone() for name, value in model.state_dict().items()},
            "recorder": recorder.state_dict(),
        }
        # Goes on for three steps that are lost with the process.
        train(recorder, model, optimizer, 5, 8)
    at_checkpoint = recorder._recording.densities.unpacked(checkpoint["recorder"]["densities"].numpy())
    model.load_state_dict(checkpoint["model"])
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", densities=True, mode="a") as recorder:
        recorder.load_state_dict(checkpoint["recorder"])
        train(recorder, model, optimizer, 5, 5 + measured_after)
    trace = lsmooth.Trace(tmp_path / "run.h5")
    if measured_after:
        assert_same(trace, whole)
    else:
        assert trace.density_counts().steps == 5
        np.testing.assert_array_equal(trace.density_counts().counts, at_checkpoint.counts)


def test_a_checkpoint_without_counts_makes_them_begin_anew_and_says_so(tmp_path):
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", densities=True) as recorder:
        train(recorder, model, optimizer, 0, 6)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", densities=True, mode="a") as recorder:
        with pytest.warns(UserWarning, match="densities begin anew"):
            recorder.load_state_dict({"step": 4})
        train(recorder, model, optimizer, 4, 7)
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.steps.tolist() == list(range(7))
    assert trace.density("0.weight").steps == 3


def test_a_run_without_densities_does_not_continue_one_with_them(tmp_path):
    seed_all()
    double_precision(Recorded(tmp_path / "run.h5", densities=True))
    with pytest.raises(TraceError, match="only one of the two keeps densities"):
        double_precision(Recorded(tmp_path / "run.h5", mode="a"))


def test_counts_can_be_read_while_the_run_goes_on(tmp_path):
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", densities=True) as recorder:
        trace = lsmooth.Trace(tmp_path / "run.h5")
        assert trace.density("0.weight").steps == 0
        for stop in (3, 4, 9):
            train(recorder, model, optimizer, trace.refresh(), stop)
            recorder.flush()
            trace.refresh()
            assert trace.density("0.weight").steps == len(trace) == stop
            assert trace.density("0.weight").counts.sum() > 0


def test_the_file_does_not_grow_with_the_number_of_times_counts_are_written(tmp_path):
    seed_all()
    sizes = {}
    for densities in (False, True):
        path = tmp_path / f"{densities}.h5"
        model = mlp().double()
        optimizer = sgd(model)
        with lsmooth.Recorder(model, optimizer, path, densities=densities) as recorder:
            for i in range(20):
                train(recorder, model, optimizer, i, i + 1)
                recorder.flush()
                if i in (0, 19):
                    sizes[densities, i] = path.stat().st_size
    # What counts take is there from the start.
    assert sizes[True, 19] - sizes[True, 0] == sizes[False, 19] - sizes[False, 0]
    assert sizes[True, 19] - sizes[False, 19] < 4 * 2 * 73728 + 20_000


def damage(path, copy, what="counts"):
    with h5py.File(path, libver="latest") as file:
        dataset = file[f"density/{what}"]
        place = dataset.id.get_offset() + copy * (dataset.nbytes // 2)
    with open(path, "r+b") as raw:
        raw.seek(place + 8)
        raw.write(b"\x07" * 8)


def test_a_copy_that_was_cut_off_in_the_middle_leaves_the_one_before(tmp_path):
    seed_all()
    model = mlp().double()
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", densities=True) as recorder:
        train(recorder, model, optimizer, 0, 3)
        recorder.flush()
        shutil.copy(tmp_path / "run.h5", tmp_path / "earlier.h5")
        train(recorder, model, optimizer, 3, 7)
        recorder.flush()
        shutil.copy(tmp_path / "run.h5", tmp_path / "later.h5")
    with h5py.File(tmp_path / "later.h5", libver="latest", swmr=True) as file:
        newest = int(file["density/note"][:, 1].argmax())
    earlier = lsmooth.Trace(tmp_path / "earlier.h5").density_counts()
    for what in ("counts", "note"):
        shutil.copy(tmp_path / "later.h5", tmp_path / "cut.h5")
        assert lsmooth.Trace(tmp_path / "cut.h5").density_counts().steps == 7
        damage(tmp_path / "cut.h5", newest, what)
        found = lsmooth.Trace(tmp_path / "cut.h5").density_counts()
        assert found.steps == 3
        np.testing.assert_array_equal(found.counts, earlier.counts)
    damage(tmp_path / "cut.h5", 1 - newest)
    with pytest.raises(TraceError, match="neither copy of the counts matches its checksum"):
        lsmooth.Trace(tmp_path / "cut.h5").density("0.weight")
