"""How long a large cloud takes to be drawn, and how large its files are."""

import io
import time

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from row import Row, interleaved

from lsmooth.figures import coordinate_density, smoothness_scatter, stability, style


def cloud(points):
    """Return a frame of points as a long run would give them."""
    generator = np.random.default_rng(0)
    grad_norm = np.exp(generator.normal(size=points))
    smoothness = (2 + 3 * grad_norm) * np.exp(generator.normal(0, 0.3, points))
    return pd.DataFrame({"step": np.arange(points), "grad_norm": grad_norm, "smoothness": smoothness, "lr": 0.1})


def save(draw, suffix):
    """Draw into a single-column figure, and return the bytes of its file."""
    with style():
        figure = Figure((3.25, 2.6), layout="constrained")
        draw(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format=suffix)
    return file.getbuffer().nbytes


def bare(frame):
    """Draw the same points in one colour and nothing else: what matplotlib needs at the least."""

    def draw(ax):
        ax.loglog(frame["grad_norm"], frame["smoothness"], ",", rasterized=True)

    return draw


def rows(short):
    points = 100_000 if short else 1_000_000
    frame = cloud(points)
    kinds = {
        "scatter": lambda ax: smoothness_scatter(frame, ax=ax),
        "stability": lambda ax: stability(frame, ax=ax),
        "density": lambda ax: coordinate_density(frame, ax=ax),
        "bare": bare(frame),
    }
    times = interleaved({name: lambda draw=draw: save(draw, "png") for name, draw in kinds.items()})
    start = time.perf_counter()
    size = save(kinds["scatter"], "pdf") / 1e6
    pdf_seconds = time.perf_counter() - start
    floor = f"matplotlib alone, one colour and no fit, takes {times['bare']:.2f} s"
    return [
        Row(
            "figures.scatter",
            f"`smoothness_scatter`, {points:,} points, to PNG",
            times["scatter"],
            "s",
            5.0,
            note=f"{floor}; the rest is 64 shades in random order, two fitted lines, and the layout.",
        ),
        Row(
            "figures.pdf",
            f"`smoothness_scatter`, {points:,} points, PDF",
            size,
            "MB",
            2.0,
            note=f"points are an image, text and axes are vectors; it takes {pdf_seconds:.1f} s.",
        ),
        Row("figures.stability", f"`stability`, {points:,} points, to PNG", times["stability"], "s", 5.0),
        Row("figures.density", f"`coordinate_density`, {points:,} points, to PNG", times["density"], "s", 5.0),
        Row(
            "figures.scatter_over_bare",
            "`smoothness_scatter` over bare matplotlib",
            times.ratio("scatter", "bare"),
            "x",
        ),
    ]
