"""The critical learning rate: closed forms, a slow reference, and what is put back."""

import copy
import math

import numpy as np
import pytest
import torch
from coupled import Quadratic
from loops import Bare, Recorded, differences, dropout, everything, sgd, simple
from older_format import rewrite_as
from torch import nn

import lsmooth
from lsmooth.errors import TraceError
from lsmooth.measure.critical import LARGEST_GAMMA, MOST_PASSES, TOLERANCE, critical_gamma


class Along:
    """f along a step, and where it was asked for."""

    def __init__(self, function):
        self.function, self.asked = function, []

    def __call__(self, gamma):
        self.asked.append(gamma)
        return self.function(gamma)


@pytest.mark.parametrize("gamma", [0.03, 0.4, 1.0, 1.7, 3.0, 40.0, 900.0])
def test_of_a_parabola_the_first_rise_is_found_to_rounding(gamma):
    f = Along(lambda x: 5 + x * (x - gamma))
    found = critical_gamma(f, 5.0, -gamma, [(x, f.function(x)) for x in (0.25, 0.5, 1.0)])
    assert found == pytest.approx(gamma, rel=1e-9)
    # A doubling an octave, and two to enclose the rise.
    assert len(f.asked) <= 3 + max(0, math.log2(gamma) + 1)


def test_of_cosh_the_first_rise_is_enclosed():
    # Along x + gamma d with x = 2 and d = -0.7, cosh is as high again at -2.
    f = Along(lambda gamma: math.cosh(2 - 0.7 * gamma))
    found = critical_gamma(f, math.cosh(2), -0.7 * math.sinh(2))
    assert found == pytest.approx(4 / 0.7, rel=1e-4)
    assert len(f.asked) <= 10


@pytest.mark.parametrize(
    ("function", "slope", "expected"),
    [
        (lambda gamma: 1 - gamma, -1.0, math.inf),
        (lambda gamma: 1.0, 0.0, 0.0),
        (lambda gamma: 1 + gamma, 1.0, 0.0),
        (lambda gamma: math.nan, math.nan, math.nan),
    ],
)
def test_losses_that_never_rise_or_rise_at_once(function, slope, expected):
    f = Along(function)
    np.testing.assert_equal(critical_gamma(f, function(0.0), slope), expected)
    assert all(gamma <= LARGEST_GAMMA for gamma in f.asked)


@pytest.mark.parametrize("beyond", [math.nan, math.inf, 1e300])
def test_where_the_loss_leaves_its_range_it_counts_as_above(beyond):
    f = Along(lambda gamma: 1 - gamma if gamma < 2.71 else beyond)
    assert critical_gamma(f, 1.0, -1.0) == pytest.approx(2.71, rel=TOLERANCE)
    assert len(f.asked) <= MOST_PASSES


def test_a_rise_below_rounding_is_none():
    # A loss whose last digit goes up and down on the way.
    f = Along(lambda gamma: 1 + 1e-7 * (-1) ** int(8 * gamma) - 1e-9 * gamma + 1e-9 * gamma**2 / 64)
    assert critical_gamma(f, 1.0, -1e-9, [(0.125, f.function(0.125))], eps=1.2e-7) > 1


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "long steps": lambda p: torch.optim.SGD(p, lr=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "two groups": lambda p: torch.optim.SGD([{"params": [q], "lr": 0.01 * (i + 1)} for i, q in enumerate(p)]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("arguments", [{}, {"endpoint": False}, {"gammas": (0.5, 1.0)}])
def test_on_a_quadratic_it_is_that_of_its_curvature(tmp_path, name, arguments):
    model = Quadratic()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    starts, steps = [], []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", critical=True, **arguments) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            recorder.backward(model)
            starts.append(torch.cat([model.first, model.last]).detach().numpy().copy())
            optimizer.step()
            steps.append(torch.cat([model.first, model.last]).detach().numpy() - starts[-1])
    h, d = model.hessian.numpy(), np.array(steps)
    expected = -2 * np.einsum("ti,ti->t", np.array(starts) @ h, d) / np.einsum("ti,ij,tj->t", d, h, d)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        table, frame = trace.critical_lr(), trace.to_frame()
        np.testing.assert_allclose(table.critical_gamma, np.where(expected > 0, expected, 0), rtol=1e-9)
        assert table.usable.all()
        rates = trace.lr
    columns = ["critical_lr"] if name != "two groups" else ["critical_lr_0", "critical_lr_1"]
    for group, column in enumerate(columns):
        np.testing.assert_array_equal(table[column], rates[:, group] * table.critical_gamma)
        np.testing.assert_array_equal(frame[column], table[column])


class Tiny(nn.Module):
    """One Transformer layer on a few words, with dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, x, y):
        return nn.functional.cross_entropy(self.head(self.layer(self.words(x))).flatten(0, 1), y.flatten())


@pytest.mark.parametrize("loop", ["plain", "accumulates", "clips", "probes"])
def test_against_a_slow_search_on_a_transformer(tmp_path, loop):
    """Deep copies of the model have no higher loss below the rise that was found, and one just beyond it."""
    model = Tiny().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(1)
    count = 2 if loop in ("accumulates", "probes") else 1
    probes = [[torch.randint(11, (3, 5), generator=generator) for _ in range(2)] for _ in range(2)]
    probe = [lambda x=x, y=y: model(x, y) for x, y in probes] if loop == "probes" else None
    losses, seed = [], 0
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", critical=True, probe=probe) as recorder:
        for _ in range(3):
            parts = [[torch.randint(11, (3, 5), generator=generator) for _ in range(2)] for _ in range(count)]
            optimizer.zero_grad()
            states = []
            for x, y in parts:
                states.append(torch.get_rng_state())
                recorder.backward(lambda x=x, y=y: model(x, y) / count)
            if loop == "clips":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            start = copy.deepcopy(model.state_dict())
            optimizer.step()
            stop, kept = copy.deepcopy(model.state_dict()), torch.get_rng_state()
            if loop == "probes":
                parts = probes
                states = [torch.manual_seed(seed).get_state()] * 2

            def loss_at(gamma, parts=parts, states=states, start=start, stop=stop):
                other = copy.deepcopy(model)
                other.load_state_dict({name: torch.lerp(a, stop[name], gamma) for name, a in start.items()})
                total = 0.0
                for (x, y), state in zip(parts, states, strict=True):
                    torch.set_rng_state(state)
                    total += other(x, y).item() / count
                return total

            losses.append(loss_at)
            torch.set_rng_state(kept)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        found = trace.critical_lr().critical_gamma.tolist()
    assert sum(gamma > 0 for gamma in found) >= 2
    for loss_at, gamma in zip(losses, found, strict=True):
        start = loss_at(0.0)
        assert loss_at(max(1.01 * gamma, 1e-3)) > start
        if gamma > 0:
            assert all(loss_at(lower) <= start for lower in np.geomspace(0.01, 0.99 * gamma, 25))


def test_it_forms_no_gradient_and_only_watches(tmp_path):
    class Spy(Recorded):
        def backward(self, closure, scaler=None):
            def seen():
                # What is in a list would be put back.
                with (tmp_path / "modes").open("a") as file:
                    file.write(f"{torch.is_grad_enabled():d}")
                return closure()

            return super().backward(seen, scaler)

    torch.manual_seed(0)
    bare = everything(*dropout(Bare()))
    torch.manual_seed(0)
    watched = everything(*dropout(Spy(tmp_path / "run.h5", critical=True)))
    assert differences(bare, watched) == []
    # Training, six points and one check are the evaluations with gradients.
    modes = (tmp_path / "modes").read_text()
    assert modes.count("1") == 6 * 7 + 1
    assert modes.count("0") >= 6 * 2
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 6}


def test_a_loss_that_contains_gradients_costs_the_critical_rate_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = sgd(model)
    x = torch.randn(8, 6, requires_grad=True)

    def penalized():
        loss = model(x).square().mean()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + slope.square().sum()

    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", critical=True) as recorder:
        recorder.backward(penalized)
        with pytest.warns(UserWarning, match="The critical learning rate of step 0 is left out"):
            optimizer.step()
        optimizer.zero_grad()
        recorder.backward(penalized)
        optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 2}
        assert np.isnan(trace.critical_lr().critical_gamma).all()
        assert not trace.critical_lr().usable.any()


def test_steps_without_displacement_and_older_traces_have_none(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    simple(model, sgd(model, lr=0.0), Recorded(tmp_path / "run.h5", critical=True), steps=2)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert np.isnan(trace.critical_lr().critical_gamma).all()
    simple(model, sgd(model), Recorded(tmp_path / "old.h5"), steps=2)
    with lsmooth.Trace(tmp_path / "old.h5") as trace, pytest.raises(TraceError, match="record with critical=True"):
        trace.critical_lr()
    rewrite_as(tmp_path / "old.h5", "1.1")
    simple(model, sgd(model), Recorded(tmp_path / "old.h5", critical=True, mode="a"), steps=2)
    with lsmooth.Trace(tmp_path / "old.h5") as trace:
        assert np.isnan(trace.read("critical_gamma")).tolist() == [True, True, False, False]


def test_scalars_have_the_critical_rate(tmp_path):
    torch.manual_seed(0)
    heard = []
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    watch = Recorded(tmp_path / "run.h5", critical=True, log=lambda *scalar: heard.append(scalar))
    simple(model, sgd(model), watch, steps=3)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        expected = trace.critical_lr().critical_lr.tolist()
    assert [value for name, value, _ in heard if name == "lsmooth/critical_lr"] == expected
