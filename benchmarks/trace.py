"""What a trace costs on the disk, and how long reading takes.

`python benchmarks/trace.py` writes a trace of 100,000 steps, 5 gammas and 150 tensors, made up of a walk that norms of
real runs resemble: each tensor has its scale, and moves by some per cent from step to step.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from recorder import SETTINGS, attached, setting
from row import Row, interleaved
from synthetic import header

from lsmooth.measure.handover import Handover
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


class Walk:
    """Rows of a run, a block at a time."""

    def __init__(self, head, seed=0):
        self.random, self.step = np.random.default_rng(seed), 0
        sizes = head.sizes()
        self.scales = {
            field.name: self.random.normal(-4, 2, [sizes[name] for name in field.dims[1:]]) for field in head.fields()
        }

    def block(self, rows):
        found = {}
        for name, scale in self.scales.items():
            if name.startswith("total_"):
                continue
            noise = self.random.normal(0, 0.1, (rows, *scale.shape))
            found[name] = np.exp(scale + noise)
            if name in ("coordinate/grad", "coordinate/displacement", "coordinate/grad_along", "coordinate/grad_next"):
                found[name] *= self.random.choice([-1.0, 1.0], found[name].shape)
        found["step"] = np.arange(self.step, self.step + rows)
        found["time"] = found["step"] * 0.1
        found["status"] = np.ones(rows, np.uint8)
        found["lr"] = np.full((rows, 1), 0.1)
        self.step += rows
        return found


def size_a_step(folder, tensors, coordinates, rows_a_flush, steps):
    head = header(tensors, coordinates)
    path = folder / "size.h5"
    writer = TraceWriter(path, head, "w")
    before = path.stat().st_size
    walk = Walk(head)
    started = time.process_time()
    for _ in range(0, steps, rows_a_flush):
        writer.append(walk.block(rows_a_flush))
    took = time.process_time() - started
    writer.close()
    return (path.stat().st_size - before) / steps, before, took / steps


def timed(work, repeats):
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found), sorted(found)[len(found) // 2]


def handing_over(steps):
    """Return the share of a run, every step of it measured, in which the training thread hands rows over."""
    model, optimizer, closure = setting(*SETTINGS["1"])
    spent = 0.0

    def clocked(method):
        def call(*arguments):
            nonlocal spent
            started = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                spent += time.perf_counter() - started

        return call

    with attached(model, optimizer, closure) as step:
        step(True)
        add = Handover.add
        Handover.add = clocked(add)  # judging is part of measuring; this and what it calls is not
        try:
            started = time.perf_counter()
            for _ in range(steps):
                step(True)
            return spent / (time.perf_counter() - started)
        finally:
            Handover.add = add


def rows(short):
    steps = 5_000 if short else 100_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare, _, _ = size_a_step(folder, 150, 0, 1, 640)
        followed, _, _ = size_a_step(folder, 150, 4, 1, 640)
        path = folder / "run.h5"
        writer, walk = TraceWriter(path, header(150)), Walk(header(150))
        for start in range(0, steps, 64):
            writer.append(walk.block(min(64, steps - start)))
        writer.close()

        def series():
            with Trace(path) as trace:
                trace.smoothness("global")

        def everything():
            with Trace(path) as trace:
                trace.read("grad_diff")

        times = interleaved({"one": series, "all": everything}, 15 if short else 7)
    return [
        Row(
            "trace.bytes",
            "bytes a measured step, 150 tensors, 5 gammas, one row a flush",
            bare,
            "bytes",
            8200,
            note="16 float32 numbers of each tensor (norms of gradient, step and weights, a norm and an inner product "
            "of each of 6 changes, and the slope) are 9,600 bytes. Three of the four bytes of each are digits that "
            "differ from step to step, which nothing compresses: deflate at level 9 in chunks of 256 steps would take "
            f"4 % less. With four followed coordinates a tensor it is {followed:,.0f}.",
        ),
        Row(
            "trace.series",
            f"global smoothness series of {steps:,} steps x 150 tensors",
            times["one"],
            "s",
            2.0,
            note="norms over all tensors are kept beside those by tensor; reading the latter takes "
            f"{times['all']:.1f} s.",
        ),
        Row("trace.series_over_all", "the same over reading all `grad_diff`", times.ratio("one", "all"), "x"),
        Row(
            "trace.handing_over",
            "share of training time spent handing over, every step measured, 1.2 M parameters",
            100 * handing_over(8 if short else 70),
            "%",
            1.0,
            note="blocks of 64 steps or 3 seconds; encoding and writing them is another thread's.",
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--tensors", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(
            "followed coordinates, rows a flush: bytes a step, bytes before the first step, ms a step (with making up)"
        )
        for coordinates in (0, 4):
            for rows in (1, 8, 64):
                a_step, before, took = size_a_step(folder, arguments.tensors, coordinates, rows, 640)
                print(f"{coordinates:>4} {rows:>4}: {a_step:>8.0f} {before:>8} {1e3 * took:>8.2f}")
        head = header(arguments.tensors)
        path = folder / "run.h5"
        writer, walk = TraceWriter(path, head), Walk(head)
        for start in range(0, arguments.steps, 64):
            writer.append(walk.block(min(64, arguments.steps - start)))
        writer.close()
        print(f"{arguments.steps} steps: {path.stat().st_size / 1e6:.0f} MB")

        def read(by):
            with Trace(path) as trace:
                trace.smoothness(by) if by != "frame" else trace.to_frame()

        def row():
            with Trace(path) as trace:
                trace.read("grad_diff", slice(arguments.steps // 2, arguments.steps // 2 + 1))

        def parameter():
            with Trace(path) as trace:
                trace.cloud({head.parameters[7]: "one"})

        for label, work in (
            ("smoothness(by='global')", lambda: read("global")),
            ("to_frame()", lambda: read("frame")),
            ("one step's grad_diff", row),
            ("one parameter's cloud", parameter),
            ("smoothness(by='module')", lambda: read("module")),
        ):
            best, median = timed(work, arguments.repeats)
            print(f"{label:<26} {best:6.2f} s best, {median:6.2f} s median of {arguments.repeats}")


if __name__ == "__main__":
    main()
