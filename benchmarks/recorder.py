"""What a measured step costs, as ratios taken side by side in one run.

    python benchmarks/recorder.py [--sizes 1,5,30] [--repeats 7] [--json FILE]

Compared, interleaved, on a Transformer encoder with a next-token loss:

* a training step (forward, backward, optimizer step), alone;
* one gradient evaluation (forward, backward);
* a measured step of the recorder, five points and the endpoint;
* an unmeasured step with the recorder attached;
* the textbook way to measure: a deep copy of the model for every point, Python loops over named parameters, one
  `.item()` a tensor.

The floor of a measured step is the training step plus as many gradient evaluations as there are points. Memory is the
peak above what a training step alone reaches, in copies of the trainable parameters, measured in processes of their
own as the peak of the resident set.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import lsmooth

GAMMAS = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)
SHAPES = {"0.1": (64, 2, 500), "1": (160, 3, 800), "5": (320, 4, 3000), "30": (640, 6, 3000)}


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


def setting(size, tokens):
    torch.manual_seed(0)
    width, layers, vocabulary = SHAPES[size]
    model = Model(width, layers, vocabulary)
    batch = max(1, tokens // 64)
    inputs, targets = torch.randint(vocabulary, (2, batch, 64))

    def closure():
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), closure


def textbook(model, optimizer, closure_of):
    """Measure one step the straightforward way."""
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


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def speed(size, tokens, repeats):
    """Return medians of the interleaved times, in seconds."""
    model, optimizer, closure = setting(size, tokens)
    _, _, plain_closure = plain = setting(size, tokens)
    other, other_optimizer, other_closure = setting(size, tokens)
    bare_optimizer = plain[1]
    measure = {"now": False}
    folder = tempfile.TemporaryDirectory()
    recorder = lsmooth.Recorder(
        model, optimizer, Path(folder.name) / "run.h5", every=lambda step: measure["now"], gammas=GAMMAS
    )

    def bare():
        bare_optimizer.zero_grad()
        plain_closure().backward()
        bare_optimizer.step()

    def gradient():
        bare_optimizer.zero_grad()
        plain_closure().backward()

    def recorded(now):
        measure["now"] = now
        optimizer.zero_grad()
        recorder.backward(closure)
        optimizer.step()

    inputs = other_closure.__closure__

    def closure_of(module):
        cells = {
            name: cell.cell_contents for name, cell in zip(other_closure.__code__.co_freevars, inputs, strict=True)
        }
        return lambda: nn.functional.cross_entropy(module(cells["inputs"]).flatten(0, 1), cells["targets"].flatten())

    kinds = {
        "step": bare,
        "gradient": gradient,
        "measured": lambda: recorded(True),
        "unmeasured": lambda: recorded(False),
        "textbook": lambda: textbook(other, other_optimizer, closure_of),
    }
    for function in kinds.values():
        function()
    times = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, function in kinds.items():
            times[name].append(timed(function))
    recorder.close()
    folder.cleanup()
    return {name: statistics.median(values) for name, values in times.items()}, sum(
        p.numel() for p in model.parameters()
    )


def peak(kind, size, tokens):
    """Run one kind of step in this process and print its peak resident set, in bytes."""
    model, optimizer, closure = setting(size, tokens)
    if kind == "textbook":
        cells = dict(zip(closure.__code__.co_freevars, [c.cell_contents for c in closure.__closure__], strict=True))
        for _ in range(2):
            textbook(
                model,
                optimizer,
                lambda module: (
                    lambda: nn.functional.cross_entropy(
                        module(cells["inputs"]).flatten(0, 1), cells["targets"].flatten()
                    )
                ),
            )
    else:
        with tempfile.TemporaryDirectory() as folder:
            # A recorder that never measures loads the same libraries.
            every = 1 if kind == "measured" else (lambda step: False)
            with lsmooth.Recorder(model, optimizer, Path(folder) / "run.h5", every=every, gammas=GAMMAS) as recorder:
                for _ in range(3):
                    # The gradients live through the whole step, as they do in the replays: what is counted is what
                    # the measurement itself holds.
                    optimizer.zero_grad(set_to_none=False)
                    recorder.backward(closure)
                    optimizer.step()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def memory(size, tokens):
    """Return peaks above a bare training step, in bytes."""
    found = {}
    # Without thresholds and arenas of its own, the allocator gives memory back when tensors die.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    for kind in ("step", "measured", "textbook"):
        done = subprocess.run(
            [sys.executable, __file__, "--peak", kind, "--sizes", size, "--tokens", str(tokens)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        found[kind] = int(done.stdout)
    return {kind: found[kind] - found["step"] for kind in ("measured", "textbook")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1,5,30", help="millions of parameters, of 0.1, 1, 5, 30")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens in a batch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=["step", "measured", "textbook"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak(arguments.peak, arguments.sizes, arguments.tokens)
        return
    points = len(GAMMAS) + 1
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    print("| parameters | measured / floor | unmeasured / bare | textbook / measured | extra memory | textbook's |")
    print("|---|---|---|---|---|---|")
    rows = []
    for size in arguments.sizes.split(","):
        times, parameters = speed(size, arguments.tokens, arguments.repeats)
        extra = memory(size, arguments.tokens)
        row = {
            "parameters": parameters,
            "measured_over_floor": times["measured"] / (times["step"] + points * times["gradient"]),
            "unmeasured_over_bare": times["unmeasured"] / times["step"],
            "textbook_over_measured": times["textbook"] / times["measured"],
            "extra_copies": extra["measured"] / (4 * parameters),
            "textbook_extra_copies": extra["textbook"] / (4 * parameters),
            "seconds": times,
        }
        rows.append(row)
        print(
            f"| {parameters / 1e6:.1f} M | {row['measured_over_floor']:.3f} | {row['unmeasured_over_bare']:.3f} "
            f"| {row['textbook_over_measured']:.2f} | {row['extra_copies']:.2f} copies "
            f"| {row['textbook_extra_copies']:.2f} copies |",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
