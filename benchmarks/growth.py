"""How cost grows: a measured step's time with the size of the model; what a run holds, with its length."""

import itertools
import json
import os
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
        times = timed(shape, 256 if short else 1024, ("floor", "measured"), repeats=5 if short else 7)
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
    found += soak(*((100, 2_000) if short else (1_000, 100_000)))
    return found


def soak(few, many):
    """Return the rows of a run of `many` measured steps, against the same run after `few`."""
    moments = long_run_in_process(few, (few + many) // 2, many)
    early, late = moments[0], moments[-1]
    growths = ((b["bytes"] - a["bytes"], b["steps"] - a["steps"]) for a, b in itertools.pairwise(moments))
    first, second = (size / steps for size, steps in growths)
    return [
        Row(
            "growth.length",
            f"resident memory after {many:,} measured steps over that after {few:,}",
            late["resident"] / early["resident"],
            "x",
            1.02,
            note=f"{early['resident']:.0f} MB and {late['resident']:.0f} MB, "
            f"{1e6 * (late['resident'] - early['resident']) / (many - few):.1f} bytes a step.",
        ),
        Row(
            "growth.file",
            f"bytes a step of the trace in the second half of {many:,} measured steps over those in the first",
            second / first,
            "x",
            1.02,
            note=f"{first:.1f} and {second:.1f} bytes a step, {late['bytes'] / 1e6:.1f} MB in all.",
        ),
        *(
            Row(
                f"growth.{held}",
                f"{words} after {many:,} measured steps over those after {few:,}",
                late[held] / early[held],
                "x",
                1.0,
                note=f"{early[held]} and {late[held]}.",
            )
            for held, words in (("descriptors", "open descriptors"), ("threads", "threads"))
        ),
    ]


def long_run_in_process(*moments):
    """Return what `long_run` finds, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, moments)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return json.loads(done.stdout)


def long_run(*moments):
    """Measure every step of a tiny model's training; return what the process holds after so many steps, each time."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(8, 4)
    found = []
    with (
        tempfile.TemporaryDirectory() as folder,
        lsmooth.Recorder(model, optimizer, Path(folder) / "run.h5", gammas=(0.5,), endpoint=False) as recorder,
    ):
        for step in range(1, moments[-1] + 1):
            optimizer.zero_grad()
            recorder.backward(lambda: model(inputs).square().mean())
            optimizer.step()
            if step in moments:
                recorder.flush()
                found.append(
                    {
                        "steps": step,
                        "resident": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6,
                        "bytes": (Path(folder) / "run.h5").stat().st_size,
                        "descriptors": len(os.listdir("/proc/self/fd")),
                        "threads": len(os.listdir("/proc/self/task")),
                    }
                )
    return found


if __name__ == "__main__":
    print(json.dumps(long_run(*map(int, sys.argv[1:]))))
