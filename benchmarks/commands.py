"""How long the commands take that one types without thinking: `--help`, `info`, `plot`, start to end."""

import subprocess
import sys
import tempfile
from pathlib import Path

from row import Row, interleaved
from synthetic import write_trace

# What a trace without densities can give. These are times and no ratios: the check of small sizes does without them.
WIDE_KINDS = ("scatter", "coordinates", "layers", "heatmap", "stability", "curves", "segments")


def rows(short):
    steps = 1_000 if short else 10_000
    with tempfile.TemporaryDirectory() as folder:
        trace = write_trace(Path(folder) / "run.h5", steps=steps, tensors=40)
        figure = str(Path(folder) / "figure.png")

        def call(*arguments):
            return lambda: subprocess.run(
                [sys.executable, "-m", "lsmooth.cli", *arguments], check=True, capture_output=True
            )

        times = interleaved(
            {
                "python": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
                "click": lambda: subprocess.run([sys.executable, "-c", "import click"], check=True),
                "read": lambda: subprocess.run([sys.executable, "-c", "import h5py, numpy, pandas"], check=True),
                "draw": lambda: subprocess.run(
                    [sys.executable, "-c", "import h5py, numpy, pandas, seaborn"], check=True
                ),
                "help": call("--help"),
                "info": call("info", str(trace)),
                "plot": call("plot", str(trace), "-o", figure, "--force"),
            },
            repeats=3 if short else 7,
        )
        if not short:
            wide = write_trace(Path(folder) / "wide.h5", steps=steps, tensors=150, coordinates=4)
            drawn = interleaved(
                {kind: call("plot", str(wide), "--kind", kind, "-o", figure, "--force") for kind in WIDE_KINDS},
                repeats=3,
            )
    return [
        Row(
            "commands.help",
            "`lsmooth --help`",
            times["help"],
            "s",
            0.3,
            note=f"an empty Python takes {times['python']:.2f} s, one that imports click {times['click']:.2f} s.",
        ),
        Row(
            "commands.info",
            f"`lsmooth info`, {steps:,} steps",
            times["info"],
            "s",
            1.0,
            note=f"importing h5py, numpy and pandas alone takes {times['read']:.2f} s.",
        ),
        Row(
            "commands.plot",
            f"`lsmooth plot`, {steps:,} steps",
            times["plot"],
            "s",
            4.0,
            note=f"importing seaborn and what reads a trace takes {times['draw']:.2f} s.",
        ),
        *(
            Row(
                f"commands.plot_{kind}",
                f"`lsmooth plot --kind {kind}`, {steps:,} steps x 150 tensors x 600 followed coordinates",
                drawn[kind],
                "s",
                4.0,
                note=f"importing seaborn and what reads a trace takes {times['draw']:.2f} s.",
            )
            for kind in (() if short else WIDE_KINDS)
        ),
        Row("commands.help_over_click", "`lsmooth --help` over importing click", times.ratio("help", "click"), "x"),
        Row("commands.info_over_imports", "`lsmooth info` over its imports", times.ratio("info", "read"), "x"),
        Row("commands.plot_over_imports", "`lsmooth plot` over its imports", times.ratio("plot", "draw"), "x"),
    ]
