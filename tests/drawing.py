"""What the tests of figures share: Axes to draw in, points to draw, and what was drawn."""

import itertools

import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from lsmooth.figures.house import sequential


def empty_axes(width=3.25, height=2.6):
    return Figure((width, height), layout="constrained").add_subplot()


def frame(n=40, seed=0, **columns):
    """Points on L = 2 + 3 g."""
    generator = np.random.default_rng(seed)
    grad_norm = np.exp(generator.normal(size=n))
    points = {"step": np.arange(n) * 10, "grad_norm": grad_norm, "smoothness": 2 + 3 * grad_norm, "usable": True}
    return pd.DataFrame(points | columns)


def drawn(ax):
    """The coloured points: x, y, and where the colour of each stands on the colour scale, from 0 to 1, in its order."""
    (cloud,) = [artist for artist in ax.collections if isinstance(artist, PathCollection)]
    offsets = np.asarray(cloud.get_offsets())
    scale = sequential()(np.linspace(0, 1, 256))
    places = np.abs(cloud.get_facecolors()[:, None] - scale[None]).sum(axis=2).argmin(axis=1) / 255
    order = np.lexsort((offsets[:, 0], places))
    return offsets[order, 0], offsets[order, 1], places[order]


def in_order_of_colour(x, y, steps):
    """What `drawn` gives of points whose colours span their own steps."""
    places = np.minimum((steps - steps.min()) / (steps.max() - steps.min()) * 256, 255).astype(int) / 255
    order = np.lexsort((x, places))
    return x[order], y[order], places[order]


def legend_texts(ax):
    """What the legend says, each label in one line."""
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def line(ax, label):
    """The one line whose label starts so."""
    (found,) = [line for line in ax.lines if str(line.get_label()).startswith(label)]
    return np.asarray(found.get_xdata(), dtype=float), np.asarray(found.get_ydata(), dtype=float)


def texts_overlap(ax):
    """Pairs of tick labels of one axis that touch, and labels that leave the figure."""
    figure = ax.figure.figure
    figure.draw_without_rendering()
    found = []
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [(label.get_text(), label.get_window_extent()) for label in labels if label.get_text()]
        boxes = [box for box in boxes if ax.bbox.padded(2).overlaps(box[1].padded(20))]
        for (one, first), (other, second) in itertools.pairwise(boxes):
            if first.overlaps(second):
                found.append((one, other))
        for text, box in boxes:
            if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1:
                found.append((text, "outside"))
    return found
