"""Curvature along the step: closed forms on quadratics, and a slow reference on a small Transformer."""

import copy

import numpy as np
import pytest
import torch
from coupled import Quadratic, Tiny, gradients
from older_format import rewrite_as
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError

ORDERS = {"l2": 2, "linf": float("inf")}


def recorded(path, lr=0.05, steps=4, **arguments):
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    starts = []
    with lsmooth.Recorder(model, optimizer, path, **arguments) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            recorder.backward(model)
            starts.append(torch.cat([model.first, model.last]).detach().numpy().copy())
            optimizer.step()
    return lsmooth.Trace(path), np.array(starts), model.hessian.numpy()


@pytest.mark.parametrize("gammas", [(0.5,), (1 / 6, 5 / 6), (0.5, 1.0)])
def test_on_a_quadratic_the_edge_ratio_is_that_of_gradient_descent(tmp_path, gammas):
    trace, starts, h = recorded(tmp_path / "run.h5", gammas=gammas)
    g = starts @ h
    table = trace.curvature()
    expected = 0.05 * np.einsum("ti,ij,tj->t", g, h, g) / (g**2).sum(axis=1)
    np.testing.assert_allclose(table.edge_ratio, expected, rtol=1e-9)
    for column in ("directional", "loss_based", *(f"directional_{gamma:.3g}" for gamma in gammas)):
        np.testing.assert_allclose(table[column], expected / 0.05, rtol=1e-9)
    assert table.loss_based_trusted.all()
    assert table.usable.all()


def test_above_two_the_step_raises_the_loss_and_below_it_lowers_it(tmp_path):
    for lr in (0.05, 0.5):
        trace, *_ = recorded(tmp_path / f"{lr}.h5", lr=lr, steps=2)
        rises = trace.read("loss_next") > trace.loss
        np.testing.assert_array_equal(trace.curvature().edge_ratio > 2, rises)
        assert rises.any() == (lr == 0.5)


def test_groups_have_their_own_part_of_the_step(tmp_path):
    trace, starts, h = recorded(tmp_path / "run.h5", norms=("l2", "linf"))
    d = -0.05 * starts @ h
    change = d @ h
    for norm, order in ORDERS.items():
        table = trace.curvature("parameter", norm=norm)
        for name, part in (("first", slice(0, 3)), ("last", slice(3, 5))):
            own = table[table.group == name]
            product = (change[:, part] * d[:, part]).sum(axis=1)
            size = np.linalg.norm(d[:, part], order, axis=1)
            np.testing.assert_allclose(own.directional, product / size**2, rtol=1e-9)
            slope = ((starts @ h)[:, part] * d[:, part]).sum(axis=1)
            np.testing.assert_allclose(own.edge_ratio, product / -slope, rtol=1e-9)


@pytest.mark.parametrize(
    ("norm", "steepest"),
    [
        ("l2", lambda g: 3 * g),
        ("linf", torch.sign),
        (
            "spectral",
            lambda g: torch.linalg.svd(g, full_matrices=False).U @ torch.linalg.svd(g, full_matrices=False).Vh,
        ),
    ],
)
def test_a_step_is_steepest_in_its_own_norm_alone(tmp_path, norm, steepest):
    torch.manual_seed(0)
    layer, inputs, targets = nn.Linear(4, 3, bias=False).double(), *torch.randn(2, 8, 4).double()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    with lsmooth.Recorder(layer, optimizer, tmp_path / "run.h5", norms=("linf", "spectral")) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            recorder.backward(lambda: (layer(inputs) - targets[:, :3]).square().mean())
            layer.weight.grad.copy_(steepest(layer.weight.grad))
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        for other in ("l2", "linf", "spectral"):
            found = trace.curvature(norm=other)["steepness"]
            if other == norm:
                np.testing.assert_allclose(found, 1, rtol=1e-9)
            else:
                assert found.between(0, 0.99).all()


@pytest.mark.parametrize("loop", ["plain", "accumulates", "clips"])
def test_against_a_slow_reference_on_a_transformer(tmp_path, loop):
    model = Tiny().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    count = 2 if loop == "accumulates" else 1
    expected = []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", gammas=(0.25, 0.75)) as recorder:
        for _ in range(3):
            parts = [
                [torch.randint(11, (3, 5), generator=generator) for _ in range(2)] for _ in range(count)
            ]  # fmt: skip
            optimizer.zero_grad()
            for x, y in parts:
                recorder.backward(lambda x=x, y=y: model(x, y) / count)
            if loop == "clips":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            start = copy.deepcopy(model.state_dict())
            optimizer.step()
            stop = model.state_dict()
            d = {name: stop[name] - start[name] for name in start}
            g = gradients(model, start, parts)
            row = {"slope": {name: (g[name] * d[name]).sum() for name in g}}
            for gamma in (0.25, 0.75, 1.0):
                at = gradients(model, {name: start[name] + gamma * d[name] for name in start}, parts)
                row[gamma] = {name: ((at[name] - g[name]) * d[name]).sum() for name in g}
                row["norm"] = {name: (at[name] - g[name]).norm() for name in g}
            expected.append(row)
    trace = lsmooth.Trace(tmp_path / "run.h5")
    names = trace.parameters

    def rows(key):
        return [[float(row[key][name]) for name in names] for row in expected]

    # The key's bias changes nothing in exact arithmetic.
    tolerance = {"rtol": 1e-7, "atol": 1e-15}
    np.testing.assert_allclose(trace.read("curvature/slope"), rows("slope"), **tolerance)
    np.testing.assert_allclose(trace.read("slope"), np.sum(rows("slope"), axis=1), rtol=1e-9)
    np.testing.assert_allclose(trace.read("curvature/change")[:, 0], rows(0.25), **tolerance)
    np.testing.assert_allclose(trace.read("curvature/change")[:, 1], rows(0.75), **tolerance)
    np.testing.assert_allclose(trace.read("curvature/change_next"), rows(1.0), **tolerance)
    np.testing.assert_allclose(trace.read("grad_diff_next"), rows("norm"), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("loop", ["plain", "accumulates", "clips", "probes"])
def test_of_short_steps_it_is_that_of_exact_hessian_vector_products(tmp_path, loop):
    """Smoothness ‖H d‖ / ‖d‖, edge ratio and directional smoothness, global and by tensor, on a Transformer."""
    model = Tiny().double()
    # About equally long steps: of shorter ones, the losses' rounding would be seen in their difference.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4 if loop == "clips" else 1e-5)
    generator = torch.Generator().manual_seed(1)
    count = 2 if loop in ("accumulates", "probes") else 1
    parts = [[torch.randint(11, (3, 5), generator=generator) for _ in range(2)] for _ in range(count)]
    copied = copy.deepcopy(model)
    names, start = zip(*copied.named_parameters(), strict=True)
    # Fused attention has no second derivatives.
    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.autograd.grad(sum(copied(x, y) for x, y in parts) / count, start, create_graph=True)
    probe = [lambda x=x, y=y: model(x, y) for x, y in parts] if loop == "probes" else None
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probe) as recorder:
        for x, y in parts:
            recorder.backward(lambda x=x, y=y: model(x, y) / count)
        if loop == "clips":
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    d = [(parameter - before).detach() for parameter, before in zip(model.parameters(), start, strict=True)]
    hd = torch.autograd.grad(sum((slope * move).sum() for slope, move in zip(slopes, d, strict=True)), start)
    bent = np.array([float((row * move).sum()) for row, move in zip(hd, d, strict=True)])
    down = -np.array([float((slope.detach() * move).sum()) for slope, move in zip(slopes, d, strict=True)])
    moved = np.array([float(move.norm()) for move in d])
    changed = np.array([float(row.norm()) for row in hd])
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        whole, by_tensor = trace.curvature(), trace.curvature("parameter")
        smoothness = trace.smoothness().smoothness.item()
        assert trace.parameters == list(names)
        rough = trace.smoothness("parameter").smoothness.to_numpy()
    size = np.linalg.norm(moved)
    assert smoothness == pytest.approx(np.linalg.norm(changed) / size, rel=1e-3)
    assert whole.edge_ratio.item() == pytest.approx(bent.sum() / down.sum(), rel=1e-3)
    for column in ("directional", "directional_0.167", "directional_0.833", "loss_based"):
        assert whole[column].item() == pytest.approx(bent.sum() / size**2, rel=1e-3)
    np.testing.assert_allclose(by_tensor.directional, bent / moved**2, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(by_tensor.edge_ratio, bent / down, rtol=1e-2, atol=1e-9)
    np.testing.assert_allclose(rough, changed / moved, rtol=1e-2)


def test_of_a_sum_of_cosh_it_has_its_closed_form(tmp_path):
    a = torch.linspace(0.5, 2, 12, dtype=torch.float64)
    model = nn.ParameterList([nn.Parameter(torch.linspace(-1, 1.3, 12, dtype=torch.float64))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    points = [model[0].detach().clone()]
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", gammas=(0.25, 0.5)) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            recorder.backward(lambda: torch.cosh(a * model[0]).sum())
            optimizer.step()
            points.append(model[0].detach().clone())
    x = torch.stack(points).numpy()
    start, d, a = x[:-1], np.diff(x, axis=0), a.numpy()

    def slope(x):
        return a * np.sinh(a * x)

    along = [((slope(start + gamma * d) - slope(start)) * d).sum(axis=1) for gamma in (0.25, 0.5, 1.0)]
    size = (d**2).sum(axis=1)
    table = lsmooth.Trace(tmp_path / "run.h5").curvature()
    np.testing.assert_allclose(table.edge_ratio, along[2] / -(slope(start) * d).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(table["directional_0.25"], along[0] / (0.25 * size), rtol=1e-9)
    np.testing.assert_allclose(table["directional_0.5"], along[1] / (0.5 * size), rtol=1e-9)
    np.testing.assert_allclose(
        table.directional, np.max([along[0] / 0.25, along[1] / 0.5, along[2]], axis=0) / size, rtol=1e-9
    )
    above = np.cosh(a * x[1:]).sum(axis=1) - np.cosh(a * start).sum(axis=1) - (slope(start) * d).sum(axis=1)
    np.testing.assert_allclose(table.loss_based, 2 * above / size, rtol=1e-9)
    assert table.loss_based_trusted.all()


def test_where_rounding_spoils_it_it_is_marked_by_group(tmp_path):
    """A bias before batch norm has a gradient of 0 in exact arithmetic: its curvature is rounding, and not used."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(32, 4)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            recorder.backward(lambda: (model(x) - 1).square().mean())
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 3}
        usable = trace.curvature("parameter").groupby("group", observed=True).usable.all()
        assert [name for name in trace.parameters if not usable[name]] == ["0.bias"]
        assert trace.curvature().usable.all()


def test_a_tensor_whose_gradient_does_not_arrive_at_a_point_changes_by_all_of_it(tmp_path):
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = model[0].detach().clone()
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:

        def closure():
            loss = model[0].square().sum()
            # Control flow that leaves the second tensor out away from x_t.
            return loss + model[1].sum() if torch.equal(model[0], start) else loss

        recorder.backward(closure)
        optimizer.step()
    trace = lsmooth.Trace(tmp_path / "run.h5")
    # g = 1 and d = -0.1 in both coordinates of the second tensor: <0 - g, d> = 0.2.
    np.testing.assert_allclose(trace.read("curvature/change")[0, :, 1], 0.2, rtol=1e-12)


def test_what_a_trace_lacks_is_said(tmp_path):
    recorded(tmp_path / "run.h5", endpoint=False)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        table = trace.curvature()
        assert not {"edge_ratio", "loss_based"} & set(table.columns)
        assert np.isfinite(table.directional).all()
        with pytest.raises(InvalidArgumentError, match="by='coordinate' is not defined"):
            trace.curvature("coordinate")
    rewrite_as(tmp_path / "run.h5", "1.1")
    with lsmooth.Trace(tmp_path / "run.h5") as trace, pytest.raises(TraceError, match="before curvature was measured"):
        trace.curvature()


def test_losses_whose_rounding_spoils_the_loss_based_form_are_marked(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    x = torch.randn(16, 4)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        recorder.backward(lambda: (model(x) - 100).square().mean())
        optimizer.step()
    table = lsmooth.Trace(tmp_path / "run.h5").curvature()
    assert not table.loss_based_trusted.any()
