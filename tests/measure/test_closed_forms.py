"""Closed forms of what a recorder measures: quadratics, and sums of cosh."""

import itertools

import numpy as np
import pytest
import torch
from loops import Function, seed_all, sgd, train

import lsmooth

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=1e-2),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.RMSprop(p, lr=1e-2),
        lambda p: torch.optim.Adagrad(p, lr=1e-2),
    ],
)
def test_quadratic_global_estimate_is_the_curvature_along_the_step(make, tmp_path):
    seed_all()
    factor = torch.randn(30, 30, dtype=torch.float64)
    hessian = factor @ factor.T
    model = Function(torch.randn(30, dtype=torch.float64), lambda x: x @ hessian @ x / 2)
    optimizer = make(model.parameters())
    points = [model.x.detach().clone()]
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(40):
            optimizer.zero_grad()
            recorder.backward(model)
            optimizer.step()
            points.append(model.x.detach().clone())
    cloud = lsmooth.Trace(tmp_path / "run.h5").cloud("global")
    steps = [after - before for before, after in itertools.pairwise(points)]
    expected = [((hessian @ d).norm() / d.norm()).item() for d in steps]
    np.testing.assert_allclose(cloud.smoothness[:, 0], expected, rtol=1e-9)
    np.testing.assert_allclose(cloud.grad_norm[:, 0], [(hessian @ x).norm().item() for x in points[:-1]], rtol=1e-12)


def test_each_followed_coordinate_of_a_sum_of_cosh_has_its_closed_form(tmp_path):
    seed_all()
    a = torch.linspace(0.5, 2, 12, dtype=torch.float64)
    model = Function(torch.randn(12, dtype=torch.float64), lambda x: torch.cosh(a * x).sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    points = [model.x.detach().clone()]
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", coordinates=5, seed=3) as recorder:
        for _ in range(15):
            optimizer.zero_grad()
            recorder.backward(model)
            optimizer.step()
            points.append(model.x.detach().clone())
    trace = lsmooth.Trace(tmp_path / "run.h5")
    index = trace.coordinates["index"].to_numpy()
    assert len(set(index)) == 5
    index = index.tolist()
    start, stop = torch.stack(points[:-1])[:, index], torch.stack(points[1:])[:, index]
    gammas = torch.tensor(trace.gammas)[:, None, None]

    def gradient(x):
        return a[index] * torch.sinh(a[index] * x)

    along = gradient(start + gammas * (stop - start))
    ratios = ((along - gradient(start)) / (gammas * (stop - start))).abs()
    best, where = ratios.max(dim=0)
    smaller = torch.minimum(gradient(start).abs(), along.gather(0, where[None])[0].abs())
    cloud = trace.cloud("coordinate")
    np.testing.assert_allclose(cloud.smoothness, best.cpu(), rtol=1e-9)
    np.testing.assert_allclose(cloud.grad_norm, smaller.cpu(), rtol=1e-9)

    end = trace.cloud("coordinate", endpoint=True)
    expected = ((gradient(stop) - gradient(start)) / (stop - start)).abs()
    np.testing.assert_allclose(end.smoothness, expected.cpu(), rtol=1e-9)
    expected = torch.minimum(gradient(stop).abs(), gradient(start).abs())
    np.testing.assert_allclose(end.grad_norm, expected.cpu(), rtol=1e-9)


def test_layer_and_global_displacement(tmp_path, model):
    with lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5") as recorder:
        train(recorder, model, recorder._subject.optimizers[0], 3)
    trace = lsmooth.Trace(tmp_path / "run.h5")
    diff, moved = trace.read("grad_diff").astype(float), trace.read("step_norm").astype(float)
    own = trace.cloud("module").smoothness
    whole = trace.cloud("module", displacement="global").smoothness
    first = np.hypot(diff[..., 0], diff[..., 1])
    np.testing.assert_allclose(own[:, 0], (first / trace.gammas / np.hypot(moved[:, 0], moved[:, 1])[:, None]).max(1))
    total = np.sqrt((moved**2).sum(axis=1))
    np.testing.assert_allclose(whole[:, 0], (first / trace.gammas / total[:, None]).max(1))
