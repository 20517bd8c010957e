"""Fixed probe batches in place of the step's own loss."""

import numpy as np
import pytest
import torch
from loops import Bare, Function, Recorded, batches, classify, differences, everything, mlp, seed_all, sgd, simple
from torch import nn

import lsmooth

pytestmark = pytest.mark.usefixtures("device")


def test_probes_measure_the_mean_of_fixed_batches(tmp_path):
    seed_all()
    model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8)).double()
    optimizer = sgd(model)
    fixed = [(x.double(), y) for x, y in batches(3, size=16, seed=7)]
    probes = [lambda x=x, y=y: classify(model, x, y) for x, y in fixed]
    expected = []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probes, seed=5) as recorder:
        for x, y in batches(4):
            optimizer.zero_grad()
            classify(model, x.double(), y).backward()
            rng, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
            gradients, losses = [], []
            for probe in probes:
                torch.manual_seed(5)
                loss = probe()
                gradients.append(torch.autograd.grad(loss, list(model.parameters())))
                losses.append(loss.item())
                for buffer, copy in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(copy)
            torch.set_rng_state(rng)
            mean = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
            noise = [(sum((g[i] - m).square().sum() for g in gradients) / 2).sqrt().item() for i, m in enumerate(mean)]
            expected.append((np.mean(losses), [m.norm().item() for m in mean], noise))
            optimizer.step()
    assert recorder.step == 4
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status_counts() == {"measured": 4}
    np.testing.assert_allclose(trace.loss, [row[0] for row in expected], rtol=1e-10)
    np.testing.assert_allclose(trace.read("grad_norm"), [row[1] for row in expected], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(trace.read("grad_noise"), [row[2] for row in expected], rtol=1e-8, atol=1e-14)
    assert trace.metadata["objective"] == "mean of 3 probe losses"


def test_probes_change_nothing(tmp_path):
    fixed = batches(2, size=16, seed=7)

    def loop(watch):
        model = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        if isinstance(watch, Recorded):
            watch.arguments["probe"] = [lambda x=x, y=y: classify(model, x, y) for x, y in fixed]
        return simple(model, sgd(model, momentum=0.9), watch)

    results = []
    for watch in (Bare(), Recorded(tmp_path / "run.h5")):
        seed_all()
        results.append(everything(*loop(watch)))
    assert differences(*results) == []


def test_the_probe_on_a_quadratic_has_its_curvature(tmp_path):
    seed_all()
    factor = torch.randn(10, 10, dtype=torch.float64)
    hessian = factor @ factor.T
    model = Function(torch.randn(10, dtype=torch.float64), lambda x: x @ hessian @ x / 2)
    optimizer = sgd(model, 1e-3)
    before = model.x.detach().clone()
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=model) as recorder:
        optimizer.zero_grad()
        recorder.backward(lambda: (model.x * torch.arange(10)).sum())
        optimizer.step()
    d = model.x.detach() - before
    got = lsmooth.Trace(tmp_path / "run.h5").cloud().smoothness.item()
    assert got == pytest.approx(((hessian @ d).norm() / d.norm()).item(), rel=1e-9)


def test_noise_is_measured_in_each_geometry(tmp_path):
    """Linear losses, whose gradients are known: by the formula in every norm, and by its expectation."""
    generator = torch.Generator("cpu").manual_seed(0)
    count = 300
    slopes = 3 + torch.randn(count, 6, 4, generator=generator, dtype=torch.float64, device="cpu")
    model = Function(torch.zeros(6, 4, dtype=torch.float64), lambda x: x.sum())
    optimizer = sgd(model, 1e-3)
    probes = [lambda c=c: (model.x * c).sum() for c in slopes.to(model.x)]
    with lsmooth.Recorder(
        model, optimizer, tmp_path / "run.h5", probe=probes, norms=["linf", "spectral"], gammas=[1.0]
    ) as recorder:
        optimizer.zero_grad()
        recorder.backward(lambda: model.x.sum())
        optimizer.step()
    norms = {
        "": lambda g: np.linalg.norm(g),
        "linf/": lambda g: np.abs(g).sum(),
        "spectral/": lambda g: np.linalg.svd(g, compute_uv=False).sum(),
    }
    gradients = slopes.numpy()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        for name, norm in norms.items():
            parts = [(i / (i + 1)) * norm(gradients[i] - gradients[:i].mean(axis=0)) ** 2 for i in range(1, count)]
            found = float(trace.read(f"{name}grad_noise")[0, 0])
            assert found == pytest.approx(np.sqrt(np.sum(parts) / (count - 1)), rel=1e-9)
            assert found == pytest.approx(np.sqrt(np.mean([norm(g - 3) ** 2 for g in gradients])), rel=0.02)
        assert trace.metadata["probes"] == count
