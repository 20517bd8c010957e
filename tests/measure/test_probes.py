"""Fixed probe batches in place of the step's own loss."""

import contextlib
import io

import numpy as np
import pytest
import torch
from coupled import Tiny, gradients
from loops import Bare, Function, Recorded, batches, classify, differences, everything, mlp, seed_all, sgd, simple
from torch import nn

import lsmooth
from lsmooth.trace.layout import FIELDS

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


@pytest.mark.parametrize("loop", ["plain", "accumulates", "clips"])
def test_noise_against_a_slow_reference_on_a_transformer(tmp_path, loop):
    """By copies of the model, whatever the loop makes of its own gradients."""
    model = Tiny().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator("cpu").manual_seed(1)
    device = next(model.parameters()).device
    fixed = [[torch.randint(11, (3, 5), generator=generator, device="cpu").to(device) for _ in "xy"] for _ in range(3)]
    probe = [lambda x=x, y=y: model(x, y) for x, y in fixed]
    expected = []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=probe, norms="linf") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            for x, y in fixed[: 2 if loop == "accumulates" else 1]:
                recorder.backward(lambda x=x, y=y: 3 * model(x, y))
            if loop == "clips":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            start = {name: value.clone() for name, value in model.state_dict().items()}
            expected.append([list(gradients(model, start, [part]).values()) for part in fixed])
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 3}
        for dataset, order in (("grad_noise", 2), ("linf/grad_noise", 1)):
            found = trace.read(dataset)
            for step, parts in enumerate(expected):
                for position, of_tensor in enumerate(zip(*parts, strict=True)):
                    spreads = [
                        i / (i + 1) * (of_tensor[i] - sum(of_tensor[:i]) / i).abs().pow(order).sum().pow(2 / order)
                        for i in (1, 2)
                    ]
                    assert found[step, position] == pytest.approx(float((sum(spreads) / 2).sqrt()), rel=1e-7)


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


def test_probes_measure_a_loop_whose_gradients_are_taken_elsewhere(tmp_path):
    """Sharpness-aware minimisation by hand: the gradient is that of weights that were moved, and moved back."""
    model = mlp()
    (x, y), *_ = batches(1, size=32)

    def probe():
        return classify(model, x, y)

    def train(record):
        seed_all()
        model.load_state_dict(mlp().state_dict())
        optimizer = sgd(model)
        expected = []
        recorder = lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", probe=[probe]) if record else None
        for _ in range(4):
            expected.append(torch.autograd.grad(probe(), list(model.parameters())))
            optimizer.zero_grad()
            probe().backward()
            before = [p.data.clone() for p in model.parameters()]
            for p in model.parameters():
                p.data.add_(p.grad, alpha=0.1)
            optimizer.zero_grad()
            probe().backward()
            for p, value in zip(model.parameters(), before, strict=True):
                p.data = value
            # Two-step optimizers step within a method of theirs that has no gradients.
            with torch.no_grad():
                optimizer.step()
        if recorder is not None:
            recorder.close()
        return [p.detach().clone() for p in model.parameters()], expected

    bare, gradients = train(False)
    recorded, _ = train(True)
    assert all(map(torch.equal, bare, recorded))
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status_counts() == {"measured": 4}
    norms = [torch.stack([g.norm() for g in step]).norm().item() for step in gradients]
    np.testing.assert_allclose(trace.smoothness()["grad_norm"], norms, rtol=1e-5)


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
    count = 100
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
            assert found == pytest.approx(np.sqrt(np.mean([norm(g - 3) ** 2 for g in gradients])), rel=0.05)
        assert trace.metadata["probes"] == count


class Settable(nn.Module):
    """A network that reads all kinds of things besides its parameters."""

    def __init__(self):
        super().__init__()
        self.net = mlp(nn.Dropout(0.3), nn.BatchNorm1d(8))
        self.register_buffer("shift", torch.zeros(6))
        self.scale = 1.0
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.generator = torch.Generator("cpu").manual_seed(3)
        self.noise = 0.0

    def forward(self, x):
        noise = self.noise and self.noise * torch.rand(1, generator=self.generator, device="cpu").to(x.device)
        return self.net((x + self.shift) * self.scale * self.frozen + noise)


def in_data(parameter):
    parameter.data.mul_(1.01)


def replace_parameter(model):
    model.frozen = nn.Parameter(torch.full((6,), 1.1), requires_grad=False)


def draw(model):
    model.noise = 0.1
    torch.rand(1, generator=model.generator, device="cpu")


# What a loop may do between two steps that changes what the probes give, or nothing.
CHANGES = {
    "nothing": lambda model, x: None,
    "evaluation of another batch": lambda model, x: model.eval()(x + 1) if not model.training else None,
    "global draws": lambda model, x: (torch.rand(3), np.random.rand()),
    "a parameter": lambda model, x: model.net[0].weight.detach().mul_(1.01),
    "a parameter in .data": lambda model, x: in_data(model.net[0].weight),
    "a frozen parameter": lambda model, x: model.frozen.detach().mul_(1.01),
    "another parameter": lambda model, x: replace_parameter(model),
    "a buffer": lambda model, x: model.shift.add_(0.01),
    "a buffer in .data": lambda model, x: model.shift.data.add_(0.01),
    "another buffer": lambda model, x: setattr(model, "shift", model.shift + 0.01),
    "a flag": lambda model, x: model.train(not model.training),
    "an attribute": lambda model, x: setattr(model, "scale", model.scale * 1.01),
    "an input": lambda model, x: x.mul_(1.01),
    "an input in .data": lambda model, x: x.data.mul_(1.01),
    "a generator": lambda model, x: draw(model),
    "what is trained": lambda model, x: model.net[0].bias.requires_grad_(not model.net[0].bias.requires_grad),
    "autocast": None,
}
SAME = {"nothing", "evaluation of another batch", "global draws"}
POINTS = 6


def probed_run(path, change="nothing", *, every=1, count=2, training=False, steps=5, autocast=False, **arguments):
    """Train; return how often the probes were evaluated, the end of the run, and the trace."""
    seed_all()
    model = Settable()
    model.train(training)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    # What is written to a file is not put back.
    calls = io.StringIO()
    fixed = batches(count, size=16, seed=7)

    def probe(x, y):
        calls.write(".")
        return classify(model, x, y)

    probes = [lambda x=x, y=y: probe(x, y) for x, y in fixed]
    with lsmooth.Recorder(model, optimizer, path, every=every, probe=probes, seed=5, **arguments) as recorder:
        for i, (x, y) in enumerate(batches(steps)):
            optimizer.zero_grad()
            classify(model, x, y).backward()
            with torch.autocast(x.device.type, torch.bfloat16) if autocast and i % 2 else contextlib.nullcontext():
                optimizer.step()
            if i != 1 and change in CHANGES and CHANGES[change] is not None:
                with torch.no_grad():
                    CHANGES[change](model, fixed[0][0])
        assert recorder.failure is None or "StringIO" in recorder.failure
    return len(calls.getvalue()), everything(model, optimizer), lsmooth.Trace(path)


def always(step):
    return True


def assert_same_trace(one, other):
    assert one.steps.tolist() == other.steps.tolist()
    assert one.status.tolist() == other.status.tolist()
    names = {field.name for field in FIELDS if one.has(field.name)} - {"time"}
    assert {"grad_noise", "grad_diff", "loss_next", "coordinate/grad_next", "curvature/change_next"} <= names
    for name in names:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)


@pytest.mark.filterwarnings("ignore:Evaluating the loss again has changed the file")
@pytest.mark.parametrize("change", CHANGES)
def test_the_gradient_at_the_end_of_a_step_serves_the_next_one_bit_for_bit(change, tmp_path):
    """A function `every` is asked too late for that: its trace is evaluated anew at each step."""
    autocast = change == "autocast"
    calls, end, trace = probed_run(tmp_path / "kept.h5", change, autocast=autocast, norms=("l2", "linf"))
    anew, expected, other = probed_run(
        tmp_path / "anew.h5", change, every=always, autocast=autocast, norms=("l2", "linf")
    )
    assert differences(end, expected) == []
    assert_same_trace(trace, other)
    # Two probes: at the start and five points and the end, once more at the first step.
    assert anew == 2 * (5 * (1 + POINTS) + 1)
    # After step 1 nothing changes, whatever changes after the others: but for what training itself goes on changing.
    kept = 4 if change in SAME else 0 if change in ("a flag", "a generator", "autocast") else 1
    assert calls == anew - 2 * kept


@pytest.mark.filterwarnings("ignore:Evaluating the loss again has changed the file")
@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"count": 1}, 4),
        ({"count": 3, "gammas": (0.5, 1.0)}, 4),
        ({"endpoint": False}, 0),
        ({"endpoint": False, "gammas": (1.0, 0.5)}, 4),
        ({"every": 2}, 0),
        # Training moves the running statistics of batch norm.
        ({"training": True}, 0),
    ],
)
def test_evaluations_that_are_saved(arguments, kept, tmp_path):
    calls, end, trace = probed_run(tmp_path / "kept.h5", **arguments)
    every = always if arguments.get("every", 1) == 1 else lambda step: step % 2 == 0
    anew, expected, other = probed_run(tmp_path / "anew.h5", **arguments | {"every": every})
    assert calls == anew - kept * arguments.get("count", 2)
    assert differences(end, expected) == []
    for name in ("loss", "grad_norm", "grad_diff", "step_norm"):
        np.testing.assert_array_equal(trace.read(name), other.read(name))


@pytest.mark.filterwarnings("ignore:Evaluating the loss again has changed the file")
@pytest.mark.parametrize(("gammas", "last"), [((0.5,), 2), ((1.0, 0.5), 2)])
def test_what_was_kept_of_a_step_that_failed_is_not_used(gammas, last, tmp_path):
    """The last evaluation of step 1, at its end or after it, fails; step 2 is measured all the same."""

    def run(path, every, fails):
        seed_all()
        model = mlp()
        optimizer = sgd(model)
        # What is written to a file is not put back, and is not seen to change either.
        calls = io.StringIO()
        fixed = batches(1, size=16, seed=7)[0]

        def probe():
            calls.write(".")
            if calls.getvalue().endswith("x" + last * "."):
                raise FloatingPointError("mine")
            return classify(model, *fixed)

        with lsmooth.Recorder(model, optimizer, path, probe=probe, every=every, gammas=gammas):
            for i, (x, y) in enumerate(batches(4)):
                calls.write("x" if i == 1 and fails else " ")
                optimizer.zero_grad()
                classify(model, x, y).backward()
                optimizer.step()
        return lsmooth.Trace(path)

    with pytest.warns(UserWarning, match="mine"):
        trace = run(tmp_path / "kept.h5", 1, fails=True)
    expected = run(tmp_path / "anew.h5", always, fails=False)
    assert trace.status_counts() == {"measured": 3, "not_repeated": 1, "non_finite": 1}
    for name in ("loss", "grad_norm", "grad_diff", "step_norm"):
        np.testing.assert_array_equal(trace.read(name)[[0, 2, 3]], expected.read(name)[[0, 2, 3]])
