"""What a measured step costs besides time: memory, as the allocator counts it, and no waiting for the device."""

import gc
import math

import pytest
import torch
from loops import batches, classify, mlp, seed_all, sgd
from torch import nn
from torch.profiler import ProfilerActivity, profile

import lsmooth
from lsmooth.loop.settings import DEFAULT_GAMMAS
from lsmooth.measure import handover
from lsmooth.measure.handover import Handover


def peak_bytes(before, function):
    """Return the most memory that tensors held at any moment of a call, above what they held before it."""
    marker = 123_457
    # The profiler also counts what was made under its eyes in earlier tests: none of that is to be freed in this call.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        # The profiler knows the size of what is freed if it saw it being allocated: so what the call replaces, such as
        # gradients, is made under its eyes.
        before()
        torch.empty(marker, dtype=torch.uint8)
        function()
    changes = [(e.start_ns(), e.nbytes()) for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [change for _, change in sorted(changes, key=lambda change: change[0])]
    begin = len(changes) - changes[::-1].index(-marker)
    held = peak = 0
    for change in changes[begin:]:
        held += change
        peak = max(peak, held)
    return peak


@pytest.fixture(autouse=True)
def nothing_handed_over_midway(monkeypatch):
    """On a slow machine, rows and counts would be handed over between two measured steps, and add to their peak."""
    monkeypatch.setattr(handover, "BLOCK_SECONDS", math.inf)


def deep():
    """Forty layers, so that no tensor is a large part of the whole, with a batch much smaller than the weights."""
    seed_all()
    return nn.Sequential(*[layer for _ in range(40) for layer in (nn.Linear(128, 128), nn.Tanh())])


def extra_copies(tmp_path, *, calls=1, set_to_none=True, clips=False, batch=2, gammas=(0.5,), **arguments):
    """Return the peak of two measured steps above that of two without recorder, in copies of the parameters."""
    model = deep()
    optimizer = sgd(model, momentum=0.9)
    x = torch.randn(batch, 128)
    size = sum(p.numel() * p.element_size() for p in model.parameters())

    def closure():
        return model(x).square().mean()

    def steps(backward):
        for _ in range(2):
            optimizer.zero_grad(set_to_none=set_to_none)
            for _ in range(calls):
                backward()
            if clips:
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()

    def bare():
        steps(lambda: closure().backward())

    if "probe" in arguments:
        arguments["probe"] = [closure] * arguments["probe"]
    bare()
    # The two steps of `bare` are not measured, and those after it are the first ones that are: what the recorder keeps
    # from one to the next counts, too.
    arguments |= {"every": lambda step: step > 1, "gammas": gammas}
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", **arguments) as recorder:
        measured = peak_bytes(bare, lambda: steps(lambda: recorder.backward(closure)))
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 2}
    return (measured - peak_bytes(bare, bare)) / size


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("batch", [2, 512])
def test_a_measured_step_holds_at_most_three_copies_more(batch, set_to_none, tmp_path):
    # x_t, x_{t+1}, and the gradient that training computed, which at a bare step need not outlive the next forward.
    # Where activations make the peak, before there are gradients, and a bare step keeps its own, it is two.
    expected = 2 if batch == 512 and not set_to_none else 3
    extra = extra_copies(tmp_path, set_to_none=set_to_none, batch=batch, gammas=DEFAULT_GAMMAS)
    assert expected - 0.1 < extra <= expected + 0.15


@pytest.mark.parametrize(("batch", "expected"), [(2, 3), (512, 4)])
def test_gradients_that_are_clipped_have_to_be_copied(batch, expected, tmp_path):
    assert expected - 0.1 < extra_copies(tmp_path, clips=True, batch=batch) <= expected + 0.15


def test_probes_need_one_copy_more_to_be_summed_in_and_accumulation_none(tmp_path):
    assert 2.9 < extra_copies(tmp_path, calls=3) <= 3.15
    (tmp_path / "run.h5").unlink()
    assert 3.9 < extra_copies(tmp_path, probe=3) <= 4.15


@pytest.mark.parametrize("count", [1, 3])
def test_what_probes_keep_for_the_next_step_is_one_copy_more(count, tmp_path):
    def peak(every):
        model = deep()
        optimizer = sgd(model)
        x = torch.randn(2, 128)

        def recorded():
            probes = [lambda: model(x).square().mean()] * count
            with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probes, every=every, mode="w"):
                for _ in range(3):
                    optimizer.zero_grad()
                    model(x).square().mean().backward()
                    optimizer.step()

        return peak_bytes(lambda: None, recorded) / sum(p.numel() * p.element_size() for p in model.parameters())

    assert 0.9 < peak(1) - peak(lambda step: True) < 1.15


def test_other_norms_hold_no_further_copy(tmp_path):
    # Gram matrices in float64, of one layer at a time.
    assert extra_copies(tmp_path, norms=("l2", "linf", "spectral")) <= 3.3


def test_densities_hold_two_copies_more(tmp_path):
    assert 4.9 < extra_copies(tmp_path, densities=True) <= 5.3


@pytest.fixture
def meta_device_let_in(monkeypatch):
    def parameters(model, optimizer):
        return [name for name, _ in model.named_parameters()], list(model.parameters())

    monkeypatch.setattr("lsmooth.loop.subject.measured_parameters", parameters)
    # What leaves the device does so in blocks, and is read on another thread.
    monkeypatch.setattr(Handover, "flush", lambda self: None)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"densities": True, "norms": ("linf",), "gammas": (0.5, 1.0)}])
def test_a_measured_step_runs_on_a_device_whose_values_cannot_be_read(arguments, scaled, tmp_path, meta_device_let_in):
    # Tensors on the meta device have no values: reading one, or copying one to the host, is an error.
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(1, device="meta").item()
    with pytest.raises(NotImplementedError, match="meta"):
        torch.ones(1, device="meta").cpu()
    model = mlp(nn.Dropout(0.2), nn.BatchNorm1d(8)).to("meta")
    optimizer = sgd(model, momentum=0.9)

    class Scaler:
        # GradScaler itself refuses the meta device.
        def is_enabled(self):
            return True

        def scale(self, loss):
            return loss * 1024.0

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", **arguments) as recorder:
        for x, y in batches(3):
            optimizer.zero_grad()
            recorder.backward(
                lambda x=x.to("meta"), y=y.to("meta"): classify(model, x, y),  # noqa: B008
                Scaler() if scaled else None,
            )
            optimizer.step()
        assert recorder._recording.handover._block.steps == [0, 1, 2]
        assert all(row.device.type == "meta" for row in recorder._recording.handover._block.rows)


def test_probes_do_not_read_values_either(tmp_path, meta_device_let_in):
    model = mlp().to("meta")
    optimizer = sgd(model)
    probes = [lambda x=x.to("meta"), y=y.to("meta"): classify(model, x, y) for x, y in batches(3)]  # noqa: B008
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probes) as recorder:
        for x, y in batches(2):
            optimizer.zero_grad()
            classify(model, x.to("meta"), y.to("meta")).backward()
            optimizer.step()
        assert recorder._recording.handover._block.steps == [0, 1]
