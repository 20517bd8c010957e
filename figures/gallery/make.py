"""Draw the gallery anew: one example of each kind of figure, from runs with fixed seeds.

    python figures/gallery/make.py              train, and draw into this folder (minutes)
    python figures/gallery/make.py --out DIR --steps 20    the same elsewhere, from shorter runs

The runs train the word language model of the paper's Figure 1(a), scaled to one processor core, on the Python
reference.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from lsmooth import figures, tasks
from lsmooth.figures.house import COLUMN
from lsmooth.figures.kinds import Options, draw_kind
from lsmooth.tasks.plan import Plan
from lsmooth.tasks.session import Session
from lsmooth.trace.reader import Trace

TASK = "transformer-encoder"
# Dots an inch: what a screen shows well, in files of less than 80 kB.
DPI = 200
OPTIMIZERS = {"sgd": {"lr": 5.0}, "adam": {"lr": 2e-3}, "generalized-signsgd": {"lr": 1e-3}}
SEEDS = (0, 1, 2)
# Name of a picture, after the function that draws it -> kind of `lsmooth plot`, and whether it takes both runs.
PICTURES = {
    "smoothness_scatter": ("scatter", False),
    "smoothness_panels": ("scatter", True),
    "coordinate_grid": ("coordinates", False),
    "coordinate_density": ("density", False),
    "layer_constants": ("layers", False),
    "layer_heatmap": ("heatmap", False),
    "stability": ("stability", False),
    "edge_ratio": ("edge", False),
    "segment_profile": ("segments", False),
}


def plan(optimizer: str, seed: int, **changes: object) -> Plan:
    """Return a run of the task, with some of its settings and hyperparameters changed."""
    task = tasks.get(TASK)
    return Plan(
        task=TASK,
        data=None,
        preset="small",
        settings=dataclasses.asdict(task.settings("small")),
        optimizer=optimizer,
        hyperparameters=task.optimizer_defaults(optimizer, "small"),
        seed=seed,
    ).with_hyperparameters(changes)


def train(run: Plan, path: Path, **recording: object) -> pd.DataFrame:
    """Train, write the trace, and return what was reported: step and losses."""
    with Session(run, path, recording, checkpoint_seconds=None) as session:
        session.train()
    rows = [
        {"step": report.step, "train_loss": report.train_loss, "valid_loss": report.metrics["loss"]}
        for report in session.run.reports
    ]
    return pd.DataFrame(rows)


def curves(folder: Path, steps: int) -> pd.DataFrame:
    """Train a narrower model with each optimizer from each seed, and return all that was reported."""
    parts = []
    for optimizer, hyperparameters in OPTIMIZERS.items():
        for seed in SEEDS:
            changes = hyperparameters | {"embedding": 64, "feed_forward": 64, "steps": steps}
            run = plan(optimizer, seed, report_every=max(1, steps // 10), **changes)
            frame = train(run, folder / f"{optimizer}-{seed}.h5", every=steps)
            parts.append(frame.assign(optimizer=optimizer, seed=seed))
            print(f"trained {optimizer}, seed {seed}", flush=True)
    return pd.concat(parts, ignore_index=True)


def draw(trace: Trace, other: Trace, losses: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Yield the name of each picture and its figure, in the sizes of `lsmooth plot`."""
    for name, (kind, both) in PICTURES.items():
        figure = Figure(layout="constrained")
        yield name, draw_kind(kind, [trace, other] if both else [trace], figure, Options())
    figure = Figure((COLUMN, 2.6), layout="constrained")
    figures.training_curves(losses, x="step", y="valid_loss", ax=figure.add_subplot())
    yield "training_curves", figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with a palette, a third of the size; the same picture is the same file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    with Image.open(buffer) as image:
        # Dithering would put specks into even areas.
        few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> None:
    """Train, draw, and name every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the figures")
    parser.add_argument("--steps", type=int, default=400, help="steps of the longest run")
    arguments = parser.parse_args()
    # Sums in another order give other bits: with one thread the order is always the same.
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train(plan("sgd", 0, steps=arguments.steps), folder / "lr-5.h5", every=2, densities=True)
        print("trained lr 5", flush=True)
        train(plan("sgd", 0, steps=arguments.steps // 2, lr=0.5), folder / "lr-0.5.h5", every=2)
        print("trained lr 0.5", flush=True)
        losses = curves(folder, arguments.steps // 2)
        with Trace(folder / "lr-5.h5") as trace, Trace(folder / "lr-0.5.h5") as other, figures.style():
            for name, figure in draw(trace, other, losses):
                path = arguments.out / f"{name}.png"
                save(figure, path)
                print(f"Wrote {path} ({path.stat().st_size / 1000:.0f} kB).", flush=True)


if __name__ == "__main__":
    main()
