"""The noise floor of a change of gradient: which steps and groups rounding spoils, and which it does not."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.estimators import rounding_noise
from lsmooth.measure.measurement import measure
from lsmooth.trace.layout import NOISE_SHARE


def gelu_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
    x, y = torch.randint(64, (16, 32)), torch.randint(64, (512,))
    return nn.Sequential(nn.Embedding(64, 64), layer, nn.Linear(64, 64)), x, y


def one_step(path, lr, *, dtype=torch.float32, amp="around", **arguments):
    """Measure one AdamW step of a GELU layer; autocast is "around" the call, "inside" of the closure, or "off"."""
    model, x, y = gelu_layer()
    model = copy.deepcopy(model).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr)

    def loss():
        with torch.autocast("cpu", torch.bfloat16) if amp == "inside" else contextlib.nullcontext():
            return nn.functional.cross_entropy(model(x).flatten(0, 1), y)

    with lsmooth.Recorder(model, optimizer, path, mode="w", **arguments) as recorder:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp == "around"):
            recorder.backward(loss)
        optimizer.step()
    return lsmooth.Trace(path), [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("amp", ["around", "inside"])
def test_under_autocast_estimates_are_right_or_flagged(amp, tmp_path):
    flagged = []
    for lr in (1e-2, 1e-3, 3e-4, 1e-4, 3e-5):
        right, _ = one_step(tmp_path / "right.h5", lr, dtype=torch.float64, amp="off")
        single, _ = one_step(tmp_path / "single.h5", lr, amp="off")
        half, _ = one_step(tmp_path / "half.h5", lr, amp=amp)
        assert [t.status_counts() for t in (right, single)] == [{"measured": 1}] * 2
        assert single.smoothness().smoothness[0] == pytest.approx(right.smoothness().smoothness[0], rel=0.01)
        assert single.smoothness(by="parameter").usable.all()
        row = half.smoothness().iloc[0]
        off = row.smoothness / right.smoothness().smoothness[0] - 1
        assert half.status_counts() == ({"measured": 1} if row.usable else {"noisy": 1})
        assert abs(off) < 0.1 or not row.usable
        # Noise is what the estimate is too large by, in the root of the sum of squares.
        if off > 0.5:
            moved = half.to_frame().step_norm[0] / 6
            expected = math.sqrt(row.smoothness**2 - right.smoothness().smoothness[0] ** 2) * moved
            # One step's rounding errors are correlated, so the estimate holds within a factor of about two.
            assert 0.45 < half.to_frame().noise[0] / expected < 2.2
        # The step's own judgement is the table's.
        change = half.read("total_grad_diff")[0]
        share = half.to_frame().noise[0] / change[np.argmax(change / half.gammas)]
        assert row.noise_share == pytest.approx(share, rel=1e-4)
        flagged.append(not row.usable)
    assert flagged == [False, True, True, True, True]


@pytest.mark.parametrize("amp", ["around", "inside"])
def test_without_autocast_the_function_is_measured(amp, tmp_path):
    for lr in (1e-2, 1e-4):
        half, weights = one_step(tmp_path / "half.h5", lr, amp=amp)
        full, same = one_step(tmp_path / "full.h5", lr, amp=amp, autocast=False)
        assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
        # Another step, since its gradient was rounded: but the same gradient and loss at x_t as in float32.
        right, _ = one_step(tmp_path / "right.h5", lr, amp="off")
        for name in ("loss", "grad_norm"):
            np.testing.assert_array_equal(full.read(name), right.read(name))
            assert (half.read(name) != right.read(name)).any()
        assert full.status_counts() == {"measured": 1}
        assert full.smoothness().smoothness[0] == pytest.approx(right.smoothness().smoothness[0], rel=0.02)
        assert full.metadata["autocast"] == 0
        assert full.metadata["objective"].endswith("without autocast")
        assert half.metadata["autocast"] == 1
    assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")


def test_probes_are_evaluated_without_autocast(tmp_path):
    model, x, y = gelu_layer()

    def probe():
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.cross_entropy(model(x).flatten(0, 1), y)

    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probe, autocast=False) as recorder:
        recorder.backward(probe)
        optimizer.step()
    right, _ = one_step(tmp_path / "right.h5", 1e-3, amp="off")
    np.testing.assert_array_equal(lsmooth.Trace(tmp_path / "run.h5").read("grad_norm"), right.read("grad_norm"))


def test_graphs_are_captured_as_training_runs(tmp_path):
    model = nn.Linear(2, 1)
    with pytest.raises(InvalidArgumentError, match="cuda_graphs=True"):
        lsmooth.Recorder(
            model, torch.optim.SGD(model.parameters(), 0.1), tmp_path / "run.h5", autocast=False, cuda_graphs=True
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_whose_gradient_is_zero_in_exact_arithmetic_are_noise(dtype, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(12):
            x, y = torch.randn(32, 8, dtype=dtype), torch.randint(3, (32,))
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: nn.functional.cross_entropy(model(x), y))
            optimizer.step()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status_counts() == {"measured": 12}
    table = trace.smoothness(by="parameter")
    assert (table.noisy == (table.group == "0.bias")).all()
    assert (table.usable == ~table.noisy).all()
    assert (trace.curvature(by="parameter").usable == table.usable).all()
    coordinates = trace.smoothness(by="coordinate")
    assert (coordinates.noisy == coordinates.group.str.startswith("0.bias")).all()
    (row,) = lsmooth.estimate(trace, by="parameter", method="trend").query("group == '0.bias'").itertuples()
    assert math.isnan(row.L0)
    assert "left out: 12 below rounding noise" in row.reason
    # The group that it is part of stands well above its noise.
    assert trace.smoothness(by="module").usable.all()


def test_key_biases_are_noise(tmp_path):
    torch.manual_seed(0)
    query, key, value, head = (nn.Linear(16, 16) for _ in range(4))
    model = nn.ModuleDict({"query": query, "key": key, "value": value, "head": head})
    x, y = torch.randn(8, 12, 16), torch.randint(16, (96,))

    def loss():
        mixed = nn.functional.scaled_dot_product_attention(query(x), key(x), value(x))
        return nn.functional.cross_entropy(head(mixed).flatten(0, 1), y)

    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(12):
            optimizer.zero_grad()
            recorder.backward(loss)
            optimizer.step()
    table = lsmooth.Trace(tmp_path / "run.h5").smoothness(by="parameter")
    assert (table.noisy == (table.group == "key.bias")).all()


def test_noise_does_not_depend_on_a_scalers_factor(tmp_path):
    noise = []
    for scale in (None, 2.0**10):
        model, x, y = gelu_layer()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", mode="w") as recorder:
            with torch.autocast("cpu", torch.bfloat16):
                recorder.backward(
                    lambda m=model, x=x, y=y: nn.functional.cross_entropy(m(x).flatten(0, 1), y), scaler=scaler
                )
            (optimizer.step if scaler is None else lambda o=optimizer, s=scaler: s.step(o))()
        noise.append(lsmooth.Trace(tmp_path / "run.h5").read("grad_diff_noise"))
    np.testing.assert_allclose(*noise, rtol=1e-3)


def test_kinks_in_float32_are_no_noise(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    x, y = torch.randn(16, 32), torch.randint(4, (16,))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(20):
            optimizer.zero_grad()
            recorder.backward(lambda: nn.functional.cross_entropy(model(x), y))
            optimizer.step()
    table = lsmooth.Trace(tmp_path / "run.h5").smoothness(by="parameter")
    assert table.usable.all()
    # Seen without the bound, they would be noise.
    changes = lsmooth.Trace(tmp_path / "run.h5").read("grad_diff").astype(float)
    gammas = np.arange(1, 6) / 6
    unbounded = rounding_noise(changes, gammas, np.full((20, 6), np.inf)) / changes[:, 0]
    assert (unbounded > NOISE_SHARE).mean() > 0.5


def test_with_few_points_noise_is_not_known_and_nothing_flagged(tmp_path):
    trace, _ = one_step(tmp_path / "run.h5", 1e-4, gammas=(0.5, 1.0))
    assert np.isnan(trace.read("grad_diff_noise")).all()
    assert trace.status_counts() == {"measured": 1}
    assert not trace.smoothness(by="parameter").noisy.any()


@pytest.mark.parametrize("cast", ["autocast", "own"])
def test_what_probes_compute_in_is_seen(cast, tmp_path):
    model, x, y = gelu_layer()
    if cast == "own":
        model[2].to(torch.bfloat16)
        model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0].to(torch.bfloat16),))

    def probe():
        with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
            return nn.functional.cross_entropy(model(x).float().flatten(0, 1), y)

    # The loss that is trained on is float32's, and so are the parameters that move.
    optimizer = torch.optim.SGD(model[:2].parameters(), 0.1)
    with lsmooth.Recorder(model[:2], optimizer, tmp_path / "run.h5", probe=probe) as recorder:
        recorder.backward(lambda: model[:2](x).square().mean())
        optimizer.step()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.read("rounding_bound").tolist() == [2.0**-6]
    assert trace.status_counts() == {"noisy": 1}


def test_casts_of_the_models_own_are_seen_without_autocast(tmp_path):
    bounds = []
    for own in (False, True):
        model, x, y = gelu_layer()

        def loss(model=model, x=x, y=y, own=own):
            hidden = model[:2](x)
            head = model[2].weight.to(torch.bfloat16) if own else model[2].weight
            return nn.functional.cross_entropy(nn.functional.linear(hidden.to(head.dtype), head).flatten(0, 1), y)

        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", autocast=False, mode="w") as recorder:
            with torch.autocast("cpu", torch.bfloat16):
                recorder.backward(loss)
            optimizer.step()
        bounds += lsmooth.Trace(tmp_path / "run.h5").read("rounding_bound").tolist()
    assert bounds == [2.0**-19, 2.0**-6]


@pytest.mark.parametrize("how", ["recorded", "watched"])
def test_what_a_loss_is_computed_in_is_known_before_it_is_evaluated_again(how, tmp_path, monkeypatch):
    # Where CUDA graphs are played back, no closure runs again.
    seen = []

    def spied(step, *arguments, **others):
        seen.append(step.dtypes)
        return measure(step, *arguments, **others)

    monkeypatch.setattr("lsmooth.instrument.measure", spied)
    model, x, y = gelu_layer()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        criterion = recorder.watch(model, nn.CrossEntropyLoss()) if how == "watched" else nn.CrossEntropyLoss()

        def loss():
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(x)
            return criterion(scores.float().flatten(0, 1), y)

        if how == "watched":
            loss().backward()
        else:
            recorder.backward(loss)
        optimizer.step()
    assert seen == [{torch.float32, torch.bfloat16}]
