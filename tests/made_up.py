"""Traces of runs that never were: written from chosen numbers, without a model, the same everywhere."""

import numpy as np

from lsmooth.trace.density import GRAD_DECADES, SMOOTHNESS_DECADES, Counts, edges
from lsmooth.trace.header import Header
from lsmooth.trace.layout import Status
from lsmooth.trace.writer import TraceWriter

LONG_NAME = "model.transformer.decoder.layers.{}.encoder_attention.query_key_value_projection.weight"


def made_up(
    path,
    *,
    tensors=6,
    steps=12,
    name="layers.{}.weight",
    scale=1.0,
    status=Status.MEASURED,
    spoil=None,
    optimizer="SGD",
    densities=False,
):
    """Write a trace of random numbers, which `spoil` may replace, and return its path."""
    generator = np.random.default_rng(0)
    names = tuple(name.format(k) for k in range(tensors))
    head = Header(
        parameters=names,
        parameter_sizes=(100,) * tensors,
        gammas=(0.25, 0.5, 0.75),
        groups=1,
        real="float64",
        endpoint=True,
        noise=False,
        coordinate_names=tuple(f"{name}[{1000 + k}, 17]" for k, name in enumerate(names)),
        coordinate_owners=np.arange(tensors),
        coordinate_indices=np.arange(tensors),
        attributes={"model": "Made", "optimizer": optimizer, "optimizer_groups": [{"lr": 0.1}], "every": 1},
        densities=densities,
    )
    sizes = head.sizes()
    rows = {
        item.name: scale * np.exp(generator.normal(-2, 1, (steps, *(sizes[dim] for dim in item.dims[1:]))))
        for item in head.fields()
    }
    rows["step"] = np.arange(steps)
    rows["status"] = np.full(steps, int(status), dtype=np.uint8)
    if spoil is not None:
        spoil(rows)
    writer = TraceWriter(path, head)
    writer.append(rows, Counts(_counted(generator, tensors, 100 * steps), steps) if densities else None)
    writer.close()
    return path


def smooth_run(rows, seed=0, pace=3.0):
    """Replace random numbers by those of a run with L = L0 + L1 g in each layer, lr decaying, and a few bad steps."""
    generator = np.random.default_rng(seed)
    steps, tensors = rows["grad_norm"].shape
    gammas = np.array([0.25, 0.5, 0.75])
    progress = np.linspace(0, 1, steps)
    lr = 0.3 / (1 + 2 * progress)
    grad = np.exp(1 - 3 * progress[:, None] + generator.normal(0, 0.4, (steps, tensors)))
    constants = 1 + np.arange(tensors) * 0.5
    smoothness = (constants + 2 * constants[::-1] * grad) * np.exp(generator.normal(0, 0.3, (steps, tensors)))
    rows["lr"] = lr[:, None]
    rows["grad_norm"] = grad
    rows["step_norm"] = lr[:, None] * grad
    rows["grad_diff"] = (smoothness * rows["step_norm"])[:, None, :] * gammas[:, None]
    for name, value in (("total_grad_norm", grad), ("total_step_norm", rows["step_norm"])):
        rows[name] = np.linalg.norm(value, axis=1)
    rows["total_grad_diff"] = np.linalg.norm(rows["grad_diff"], axis=2)
    squares = (rows["step_norm"] ** 2).sum(axis=1)
    rows["slope"] = -squares / lr
    curvature = (smoothness * rows["step_norm"] ** 2).sum(axis=1) / 3
    rows["loss"] = 0.5 + 2 * np.exp(-pace * progress) + generator.normal(0, 0.05, steps)
    rows["loss_along"] = rows["loss"][:, None] + np.outer(rows["slope"], gammas) + np.outer(curvature, gammas**2) / 2
    rows["loss_next"] = rows["loss"] + rows["slope"] + curvature / 2
    signs = generator.choice([-1, 1], (steps, tensors))
    rows["coordinate/grad"] = signs * grad / 10
    rows["coordinate/displacement"] = -lr[:, None] * rows["coordinate/grad"]
    change = smoothness * rows["coordinate/displacement"]
    rows["coordinate/grad_along"] = rows["coordinate/grad"][:, None, :] + change[:, None, :] * gammas[:, None]
    rows["coordinate/grad_next"] = rows["coordinate/grad"] + change
    rows["status"][5::20] = int(Status.BELOW_RESOLUTION)


def _counted(generator, tensors, points):
    """Count made-up coordinates on the bins of a trace: larger gradients, rougher loss."""
    bins = edges(GRAD_DECADES), edges(SMOOTHNESS_DECADES)
    counts = []
    for _ in range(tensors):
        grad = generator.normal(-4, 1, points)
        smoothness = 0.5 * grad + generator.normal(2, 0.5, points)
        counts.append(np.histogram2d(10**grad, 10**smoothness, bins=bins)[0])
    return np.array(counts, dtype=np.int64)
