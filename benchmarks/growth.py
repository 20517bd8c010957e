"""How cost grows: a measured step's time with the size of the model, a run's memory with its length."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from recorder import timed
from row import Row
from torch import nn

import lsmooth

# width, layers, vocabulary of models of about so many million parameters
SIZES = {1: (160, 3, 800), 3: (256, 3, 2000), 10: (432, 4, 1200), 30: (640, 6, 1000), 100: (1024, 8, 1000)}


def rows(short):
    found = []
    ratios = {}
    for millions, shape in SIZES.items():
        if short and millions > 3:
            break
        times = timed(shape, 1024, ("floor", "measured"), repeats=5 if short else 7)
        ratios[millions] = times.ratio("measured", "floor")
    worst, best = max(ratios.values()), min(ratios.values())
    spread = ", ".join(f"{size} M: {ratio:.3f}" for size, ratio in ratios.items())
    found.append(
        Row(
            "growth.size",
            f"measured step over its floor, worst of {', '.join(map(str, ratios))} M parameters",
            worst,
            "x",
            1.05,
            note=f"a straight line through the floor would be 1 at every size; measured {spread}.",
        )
    )
    found.append(Row("growth.size_spread", "the same, worst over best", worst / best, "x"))
    few, many = (100, 2_000) if short else (1_000, 100_000)
    megabytes = {steps: run_memory(steps) for steps in (few, many)}
    found.append(
        Row(
            "growth.length",
            f"resident memory after {many:,} measured steps over that after {few:,}",
            megabytes[many] / megabytes[few],
            "x",
            1.02,
            note=f"{megabytes[few]:.0f} MB and {megabytes[many]:.0f} MB.",
        )
    )
    return found


def run_memory(steps):
    """Return the resident set, in MB, at the end of a run of so many measured steps of a tiny model."""
    done = subprocess.run(
        [sys.executable, __file__, str(steps)], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return float(done.stdout)


def long_run(steps):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(8, 4)
    with (
        tempfile.TemporaryDirectory() as folder,
        lsmooth.Recorder(model, optimizer, Path(folder) / "run.h5", gammas=(0.5,), endpoint=False) as recorder,
    ):
        for _ in range(steps):
            optimizer.zero_grad()
            recorder.backward(lambda: model(inputs).square().mean())
            optimizer.step()
        recorder.flush()
        print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)


if __name__ == "__main__":
    long_run(int(sys.argv[1]))
