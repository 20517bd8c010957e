"""Traces of any size with made-up numbers, written in moments: for timing what reads them."""

import numpy as np

from lsmooth.trace.header import Header
from lsmooth.trace.layout import Status
from lsmooth.trace.writer import TraceWriter

GAMMAS = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)


def header(tensors, coordinates=0, gammas=GAMMAS):
    """Return the header of a made-up run."""
    names = tuple(f"layers.{i // 2}.{('weight', 'bias')[i % 2]}" for i in range(tensors))
    owners = np.repeat(np.arange(tensors), coordinates)
    return Header(
        parameters=names,
        parameter_sizes=(1000,) * tensors,
        gammas=gammas,
        groups=1,
        real="float32",
        endpoint=True,
        noise=False,
        coordinate_names=tuple(f"{names[owner]}[{i}]" for i, owner in enumerate(owners)),
        coordinate_owners=owners,
        coordinate_indices=np.tile(np.arange(coordinates), tensors),
        attributes={"model": "Made", "optimizer": "SGD", "optimizer_groups": [{"lr": 0.1}], "every": 1},
    )


def block(head, first, count, generator):
    """Return `count` rows of a run whose smoothness grows with its gradient norm."""
    sizes = head.sizes()
    rows = {}
    for item in head.fields():
        shape = (count, *(sizes[name] for name in item.dims[1:]))
        # Rounding is set, not drawn.
        drawn = item.name not in ("rounding_bound", "grad_diff_noise")
        rows[item.name] = np.exp(generator.normal(-2, 0.5, shape)) if drawn else np.zeros(shape)
    rows["step_norm"] *= 0.1
    gammas = np.asarray(head.gammas)[None, :, None]
    level = 2 + 3 * rows["grad_norm"][:, None, :] * np.exp(generator.normal(0, 0.2, rows["grad_diff"].shape))
    rows["grad_diff"] = level * gammas * rows["step_norm"][:, None, :]
    rows["step"] = np.arange(first, first + count)
    rows["time"] = rows["step"] * 0.1
    rows["rounding_bound"][:] = 2.0**-19
    rows["status"] = np.full(count, int(Status.MEASURED), dtype=np.uint8)
    return rows


def write_trace(path, steps, tensors, coordinates=0, rows_a_block=4096):
    """Write a made-up trace and return its path."""
    generator = np.random.default_rng(0)
    head = header(tensors, coordinates)
    writer = TraceWriter(path, head)
    for first in range(0, steps, rows_a_block):
        writer.append(block(head, first, min(rows_a_block, steps - first), generator))
    writer.close()
    return path
