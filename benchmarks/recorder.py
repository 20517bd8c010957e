"""What a measured step costs, as ratios taken side by side in one run.

    python benchmarks/recorder.py [--short]

Compared, interleaved, on a Transformer encoder with a next-token loss:

* a training step (forward, backward, optimizer step), alone;
* the floor of a measured step: a training step, and one gradient evaluation (forward, backward) a point;
* a measured step of the recorder, five points and the endpoint;
* an unmeasured step with the recorder attached;
* the textbook way to measure: a deep copy of the model for every point, Python loops over named parameters, one
  `.item()` a tensor.

Memory is the peak above what a training step alone reaches, in copies of the trainable parameters, as the allocator
counts it.
"""

import argparse
import contextlib
import copy
import functools
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from row import Row, interleaved
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import lsmooth
import lsmooth.measure.row
from lsmooth.measure.coordinates import CoordinateReader
from lsmooth.measure.handover import Handover
from lsmooth.measure.norms import TensorNorms
from lsmooth.measure.quantities import GradientChanges
from lsmooth.replay.microbatch import Microbatch
from lsmooth.replay.segment import Segment
from lsmooth.replay.state import ModuleState, RandomState

GAMMAS = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)
POINTS = len(GAMMAS) + 1
# Width, layers and vocabulary of a model, and tokens in a batch: at 0.1 M parameters, where Python, not arithmetic,
# takes the time, as few as that takes, and at small sizes few, so that what a recorder adds is seen.
SETTINGS = {
    "0.1": ((64, 2, 500), 256),
    "1": ((160, 3, 800), 1024),
    "1_256": ((160, 3, 800), 256),
    "5": ((320, 4, 3000), 1024),
    "5_2048": ((320, 4, 3000), 2048),
    "30": ((640, 6, 3000), 2048),
}


class Model(nn.Module):
    """Next-token model: embedding, Transformer encoder, linear decoder."""

    def __init__(self, width, layers, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.decode = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        return self.decode(self.encoder(self.embed(tokens)))


def setting(shape, tokens, device="cpu"):
    torch.manual_seed(0)
    width, layers, vocabulary = shape
    model = Model(width, layers, vocabulary).to(device)
    inputs, targets = torch.randint(vocabulary, (2, tokens // 64, 64)).to(device)

    def closure():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), closure


def train(_, optimizer, closure):
    """Take a training step."""
    optimizer.zero_grad()
    closure().backward()
    optimizer.step()


def textbook(model, optimizer, closure):
    """Measure one step the straightforward way."""
    closure_of = closure_maker(closure)
    optimizer.zero_grad()
    state = torch.get_rng_state()
    closure_of(model)().backward()
    first = {name: p.grad.clone() for name, p in model.named_parameters()}
    before = copy.deepcopy(model)
    optimizer.step()
    after = torch.get_rng_state()
    rows = []
    for gamma in (*GAMMAS, 1.0):
        point = copy.deepcopy(before)
        with torch.no_grad():
            for (_, p), (_, q) in zip(point.named_parameters(), model.named_parameters(), strict=True):
                p.copy_(p + gamma * (q - p))
        point.zero_grad()
        torch.set_rng_state(state)
        closure_of(point)().backward()
        for name, p in point.named_parameters():
            change = (p.grad - first[name]).norm().item()
            moved = (dict(model.named_parameters())[name] - dict(before.named_parameters())[name]).norm().item()
            rows.append((name, gamma, change, moved, first[name].norm().item()))
    torch.set_rng_state(after)
    return rows


def closure_maker(closure):
    """Return a function from a model to its closure, on the batch of `closure`."""
    cells = dict(zip(closure.__code__.co_freevars, [cell.cell_contents for cell in closure.__closure__], strict=True))
    inputs, targets = cells["inputs"], cells["targets"]
    return lambda model: lambda: nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@contextlib.contextmanager
def attached(model, optimizer, closure, **arguments):
    """Attach a recorder; yields a step to be called with whether it is to be measured."""
    measuring = {"now": False}
    with (
        tempfile.TemporaryDirectory() as folder,
        lsmooth.Recorder(
            model, optimizer, Path(folder) / "run.h5", every=lambda step: measuring["now"], gammas=GAMMAS, **arguments
        ) as recorder,
    ):

        def step(now):
            measuring["now"] = now
            optimizer.zero_grad()
            recorder.backward(closure)
            optimizer.step()

        yield step


def rows(short):
    found = []
    for size in ("0.1", "1_256") if short else ("0.1", "1", "5", "30"):
        found += of_size(size)
    if not short:
        # What a measured step costs beyond its gradients does not grow with the batch.
        found.append(measured("5_2048", timed(*SETTINGS["5_2048"], ("floor", "measured"))))
    found.append(curvature("1_256" if short else "5", 7 if short else 21))
    found.append(unmeasured_alone(101 if short else 501))
    found += of_options("1_256" if short else "5", 3 if short else 7)
    found.append(points_at_once(7))
    if not short:
        # A test counts them, too.
        found.append(operations())
    return found


class Dispatched(TorchDispatchMode):
    """Counts the operations that are dispatched in a block."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def _parameters_of(model, _):
    return [name for name, _ in model.named_parameters()], list(model.parameters())


def operations():
    """Return the row of what a point has a GPU's host dispatch, on a device that runs nothing."""
    found = {}
    with (
        mock.patch("lsmooth.loop.subject.measured_parameters", _parameters_of),
        # What leaves the device does so in blocks, and is read on another thread.
        mock.patch.object(Handover, "flush", return_value=None),
        tempfile.TemporaryDirectory() as folder,
    ):
        for points in (2, 3):
            model = many_small_tensors()[0].to("meta")
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            x = torch.zeros(4, 4, device="meta")
            gammas = [(i + 1) / (points + 1) for i in range(points)]
            with lsmooth.Recorder(model, optimizer, Path(folder) / f"{points}.h5", gammas=gammas) as recorder:
                for _ in range(2):
                    optimizer.zero_grad()
                    recorder.backward(lambda: model(x).square().mean())  # noqa: B023
                    with Dispatched() as counted:
                        optimizer.step()
            found[points] = counted.count
    return Row(
        "recorder.operations",
        "operations that a point has a GPU's host dispatch beyond its evaluation, 150 tensors",
        found[3] - found[2],
        "operations",
        15,
        note="counted on PyTorch's meta device, whatever the number of tensors: 2 move the parameters, 2 form "
        "differences and take their norms, 4 form products with the step and sum them up, 2 bring results together, 2 "
        "detach and copy the loss, 3 read the followed coordinates. What is done once a step, most of it to find "
        f"edited gradients, takes {found[2] - 3 * (found[3] - found[2])} more, the optimizer's own among them. Models "
        "above 8 MB take gradients as they arrive, in up to 16 buckets with 7 to 9 operations each.",
    )


def timed(shape, tokens, kinds, device="cpu", repeats=7, steps=1):
    """Time each kind of step, several after one another where a device runs behind its host."""
    plain, other = setting(shape, tokens, device), setting(shape, tokens, device)

    def floor():
        train(*plain)
        _, optimizer, closure = plain
        for _ in range(POINTS):
            optimizer.zero_grad()
            closure().backward()

    with contextlib.ExitStack() as stack:
        step = stack.enter_context(attached(*setting(shape, tokens, device)))
        if "played" in kinds:
            play = stack.enter_context(attached(*setting(shape, tokens, device), cuda_graphs=True))
        functions = {
            "step": lambda: train(*plain),
            "floor": floor,
            "measured": lambda: step(True),
            "played": lambda: play(True),
            "textbook": lambda: textbook(*other),
        }

        def run(kind):
            for _ in range(steps):
                functions[kind]()

        return interleaved({kind: functools.partial(run, kind) for kind in kinds}, repeats, waiting(device))


def waiting(device):
    """Return what waits for a device."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def unmeasured(make, rounds, device="cpu"):
    """Time steps that are not measured beside steps without recorder.

    Two models of a kind differ by a percent or two, by where their memory lies: each is watched in its turn.

    Returns:
        The ratio of the two, and by how many seconds the first are longer.
    """
    pair = make(), make()
    found = []
    for watched, plain in (pair, pair[::-1]):
        with attached(*watched) as step:
            kinds = {"step": functools.partial(train, *plain), "unmeasured": functools.partial(step, False)}
            found.append(interleaved(kinds, rounds, waiting(device)))
    return (
        statistics.geometric_mean(times.ratio("unmeasured", "step") for times in found),
        statistics.mean(times["unmeasured"] - times["step"] for times in found),
    )


def many_small_tensors():
    """Make a model whose steps take hardly anything themselves."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(75)])
    inputs = torch.randn(4, 4)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3), lambda: model(inputs).square().mean()


def unmeasured_alone(rounds):
    """Return the row of what an unmeasured step takes more."""
    _, longer = unmeasured(many_small_tensors, rounds)
    return Row(
        "recorder.unmeasured_alone",
        "what an unmeasured step takes more, 150 tensors",
        1e6 * longer,
        "µs",
        note="beside a step of 20 ms or more this is less than the 1 % aimed at, and than what two whole steps of one "
        "kind differ by.",
    )


def measured(size, times):
    """Return the row of a measured step's time."""
    with attached(*setting(*SETTINGS[size])) as step:
        parts = profiled(lambda: step(True), 7)
    own = {part: seconds for part, seconds in parts.items() if part != "gradients"}
    listed = ", ".join(f"{part} {1e3 * seconds:.1f} ms" for part, seconds in own.items())
    return Row(
        f"recorder.measured_{size}",
        f"measured step over its floor, {POINTS} points, {millions(size)} parameters, {SETTINGS[size][1]:,} tokens",
        times.ratio("measured", "floor"),
        "x",
        {"5": 1.05, "5_2048": 1.05, "30": 1.02}.get(size),
        note=f"floor {1e3 * times['floor']:.0f} ms, a step and {POINTS} gradient evaluations. The recorder's own work, "
        f"whatever the batch: {listed}; {100 * sum(own.values()) / times['floor']:.1f} % of the floor.",
    )


def curvature(size, repeats):
    """Return the row of what norms of changes, and curvature along the step, take of a measured step together."""
    methods = tuple((GradientChanges, name) for name in ("at_start", "arrived", "absent", "at_point", "at_last"))
    shares, spent, read = [], [], []
    four = torch.zeros(4, sum(p.numel() for p in Model(*SETTINGS[size][0]).parameters()))
    with attached(*setting(*SETTINGS[size])) as step:
        step(True)
        for _ in range(repeats):
            started = time.perf_counter()
            with clocked({"curvature": methods}) as parts:
                step(True)
            spent.append(parts["curvature"])
            shares.append(100 * spent[-1] / (time.perf_counter() - started))
            started = time.perf_counter()
            four.sum()
            read.append(POINTS * (time.perf_counter() - started))
    return Row(
        f"recorder.curvature_{size}",
        f"norms of changes and curvature along the step, share of a measured step, {millions(size)} parameters",
        statistics.median(shares),
        "%",
        2.0 if size == "5" else None,
        note=f"{1e3 * statistics.median(spent):.1f} ms a measured step: one pass over two gradients and both ends of "
        f"the step at each of {POINTS} points, which norms and curvature share. To read these four alone takes "
        f"{1e3 * statistics.median(read):.1f} ms.",
    )


def millions(size):
    """Return the number of parameters, to be read."""
    return millions_of(SETTINGS[size][0])


def millions_of(shape):
    number = sum(p.numel() for p in Model(*shape).parameters()) / 1e6
    return f"{number:.0f} M" if number >= 100 else f"{number:.2g} M"


def of_size(size):
    """Return time and memory at one size."""
    times = timed(*SETTINGS[size], ("floor", "measured", "textbook"))
    idle, _ = unmeasured(lambda: setting(*SETTINGS[size]), 11)
    mine, other = setting(*SETTINGS[size]), setting(*SETTINGS[size])
    copies = sum(p.numel() * p.element_size() for p in mine[0].parameters())

    def first_step():
        # What a recorder keeps from one step to the next counts, too.
        with attached(*mine) as step:
            step(True)

    by_hand = peak_bytes(lambda: textbook(*other))
    base = peak_bytes(lambda: train(*mine))
    above = (peak_bytes(first_step) - base) / copies
    above_by_hand = (by_hand - base) / copies
    parameters = millions(size)
    large = size in ("5", "30")
    return [
        measured(size, times),
        Row(
            f"recorder.unmeasured_{size}",
            f"unmeasured step over a step without recorder, {parameters} parameters",
            idle,
            "x",
            1.01,
        ),
        Row(
            f"recorder.textbook_{size}",
            f"the textbook way over a measured step, {parameters} parameters",
            times.ratio("textbook", "measured"),
            "x",
            1.3 if large else 2.0 if size == "0.1" else None,
            "at least",
            note=f"cannot exceed {times.ratio('textbook', 'floor'):.2f}: both evaluate the same gradients.",
        ),
        Row(
            f"recorder.memory_{size}",
            f"peak memory of a measured step above a bare one, {parameters} parameters",
            above,
            "copies",
            3.15 if large else None,
            note="x_t, x_{t+1}, and training's `.grad`, which a bare step has dropped when its next forward pass ends; "
            "none of them can be had from the others bit for bit.",
        ),
        Row(
            f"recorder.memory_textbook_{size}",
            f"the same over that of the textbook way, {parameters} parameters",
            above / above_by_hand,
            "x",
            0.5 if large else None,
            note=f"the textbook way holds {above_by_hand:.2f} copies: one more, of the first gradient.",
        ),
    ]


# What a measured step does besides evaluating gradients, by what it is spent on.
PARTS = {
    "norms": ((TensorNorms, "add"), (TensorNorms, "parts")),
    "copies and interpolation": ((Segment, "begin"), (Segment, "end"), (Segment, "move_to")),
    "followed coordinates": ((CoordinateReader, "read"),),
    "generators and buffers": (
        *((RandomState, "capture"), (RandomState, "restore")),
        *((ModuleState, "capture"), (ModuleState, "restore")),
    ),
    "the row": ((Handover, "new_row"), (lsmooth.measure.row.Row, "judge"), (Handover, "add")),
    "gradients": ((Microbatch, "evaluate"),),
}


@contextlib.contextmanager
def clocked(parts):
    """Yield the seconds that are spent in each part while the block runs; a part within another counts as its own."""
    spent = dict.fromkeys(parts, 0.0)
    running = []
    originals = []

    def wrap(part, method):
        def call(*arguments, **named):
            started = time.perf_counter()
            running.append(0.0)
            try:
                return method(*arguments, **named)
            finally:
                whole = time.perf_counter() - started
                spent[part] += whole - running.pop()
                if running:
                    running[-1] += whole

        return call

    for part, methods in parts.items():
        for owner, name in methods:
            method = owner.__dict__[name]
            originals.append((owner, name, method))
            inner = method.__func__ if isinstance(method, classmethod) else method
            wrapped = wrap(part, inner)
            setattr(owner, name, classmethod(wrapped) if isinstance(method, classmethod) else wrapped)
    try:
        yield spent
    finally:
        for owner, name, method in originals:
            setattr(owner, name, method)


def profiled(step, repeats):
    """Return by part the median seconds that it takes of a step."""
    found = []
    for _ in range(repeats):
        with clocked(PARTS) as spent:
            step()
        found.append(spent)
    return {part: statistics.median(spent[part] for spent in found) for part in PARTS}


def of_options(size, repeats):
    """Return what other norms and densities add to a measured step."""
    found = []
    for name, what, arguments in (
        ("linf", 'norms=("l2", "linf")', {"norms": ("linf",)}),
        ("spectral", 'norms=("l2", "spectral")', {"norms": ("spectral",)}),
        ("densities", "densities=True", {"densities": True}),
    ):
        with attached(*setting(*SETTINGS[size])) as plain, attached(*setting(*SETTINGS[size]), **arguments) as step:
            times = interleaved({"plain": lambda: plain(True), "with": lambda: step(True)}, repeats)
        added = 1e3 * (times["with"] - times["plain"])
        found.append(
            Row(
                f"recorder.{name}_{size}",
                f"measured step with {what} over one without, {millions(size)} parameters",
                times.ratio("with", "plain"),
                "x",
                note=f"{added:.0f} ms more a measured step.",
            )
        )
    return found


def points_at_once(repeats):
    """Return how much faster all points of a tiny model are when they are evaluated as one batch of models."""
    model, _, closure = setting(*SETTINGS["0.1"])
    model.eval()
    make = closure_maker(closure)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return make(self.model)()

    whole = Whole()
    names = [name for name, _ in whole.named_parameters()]
    points = [[p.detach() * (1 + 0.01 * i) for p in whole.parameters()] for i in range(POINTS)]
    stacked = {name: torch.stack(values) for name, values in zip(names, zip(*points, strict=True), strict=True)}
    gradient = torch.func.grad(lambda values: torch.func.functional_call(whole, values))

    def at_once():
        return torch.func.vmap(gradient, randomness="same")(stacked)

    def one_by_one():
        found = []
        for values in points:
            with torch.no_grad():
                for p, value in zip(whole.parameters(), values, strict=True):
                    p.copy_(value)
            found.append(torch.autograd.grad(whole(), list(whole.parameters())))
        return found

    batched, single = at_once(), one_by_one()
    off = max(
        ((batched[name][i] - g[j]).norm() / g[j].norm()).item()
        for i, g in enumerate(single)
        for j, name in enumerate(names)
    )
    times = interleaved({"one by one": one_by_one, "at once": at_once}, repeats)
    return Row(
        "recorder.points_at_once",
        f"{POINTS} gradient evaluations one by one over the same under vmap, 0.16 M parameters",
        times.ratio("one by one", "at once"),
        "x",
        None,
        "at least",
        note=f"not used: batched products round differently (gradients differ by {off:.1g} of their norm), so that a "
        "replay would no longer give the step's own gradient bit for bit, and dropout would draw other masks.",
    )


def peak_bytes(function):
    """Return the most memory that tensors hold at any moment of a call, above what they held before it."""
    marker = 123_457
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        # The profiler knows the size of what is freed if it saw it being allocated.
        function()
        torch.empty(marker, dtype=torch.uint8)
        function()
    events = [(e.start_ns(), e.nbytes()) for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [change for _, change in sorted(events, key=lambda event: event[0])]
    held = peak = 0
    for change in changes[len(changes) - changes[::-1].index(-marker) :]:
        held += change
        peak = max(peak, held)
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small models only")
    for row in rows(parser.parse_args().short):
        target = "" if row.target is None else f"  ({row.sense} {row.target}: {'met' if row.met() else 'missed'})"
        print(f"{row.what}: {row.format(row.value)}{target}\n    {row.note}")


if __name__ == "__main__":
    main()
