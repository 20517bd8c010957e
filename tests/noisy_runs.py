"""Traces of runs whose gradients and noise are known: probes with Gaussian noise of a given size."""

import numpy as np

from lsmooth.trace.header import Header
from lsmooth.trace.writer import TraceWriter

S0, S1, PROBES, SIZE, COORDINATES = 0.5, 0.8, 4, 32, 400


def simulated(path, seed=0, steps=300, s0=S0, s1=S1, scale=3.0, attributes=None, tensors=1):
    """Write the trace of a run whose probes have Gaussian noise of a known size about a known gradient."""
    generator = np.random.default_rng(seed)
    norm = scale * np.exp(-np.linspace(0, 3, steps) + 0.4 * generator.normal(size=steps))
    sigma = np.sqrt(s0**2 + s1**2 * norm**2)
    shape = (steps, PROBES, COORDINATES)
    gradients = sigma[:, None, None] * generator.normal(size=shape) / np.sqrt(COORDINATES)
    gradients[:, :, 0] += norm[:, None]
    mean = gradients.mean(axis=1)
    deviation = np.sqrt(((gradients - mean[:, None]) ** 2).sum(axis=1) / (PROBES - 1))
    attributes = {"probes": PROBES, "probe_size": SIZE} if attributes is None else attributes
    header = Header(
        parameters=tuple(f"layer{i}.weight" for i in range(tensors)),
        parameter_sizes=(COORDINATES // tensors,) * tensors,
        gammas=(0.5,),
        groups=1,
        real="float64",
        endpoint=False,
        noise=True,
        coordinate_names=(),
        coordinate_owners=np.zeros(0, np.int64),
        coordinate_indices=np.zeros(0, np.int64),
        attributes=attributes,
    )
    sizes = header.sizes()
    rows = {
        field.name: np.ones((steps, *(sizes[name] for name in field.dims[1:])))
        for field in header.fields()
        if not field.total_of
    }

    def by_tensor(values):
        return np.sqrt((values.reshape(steps, tensors, -1) ** 2).sum(axis=2))

    rows |= {
        "step": np.arange(steps),
        "status": np.ones(steps, np.uint8),
        "grad_norm": by_tensor(mean),
        "grad_noise": by_tensor(deviation),
    }
    writer = TraceWriter(path, header)
    writer.append(rows)
    writer.close()
    return norm, sigma
