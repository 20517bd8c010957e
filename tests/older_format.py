"""Traces of earlier formats: a trace written again without what its format did not have yet."""

import numpy as np

from lsmooth.trace.header import Header
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

# What the writer puts among the root attributes by itself.
OWN_ATTRIBUTES = ("format", "format_version", "Conventions", "comment", "header_crc32")


def rewrite_as(path, version):
    """Put a trace of an earlier format, with the same rows, in a trace's place."""
    with Trace(path) as trace:
        coordinates = trace.coordinates
        made = Header(
            parameters=tuple(trace.parameters),
            parameter_sizes=tuple(trace.parameter_sizes.tolist()),
            gammas=tuple(trace.gammas.tolist()),
            groups=trace.lr.shape[1],
            real=str(trace.read("grad_norm", slice(0, 0)).dtype),
            endpoint=trace.has("loss_next"),
            noise=trace.has("grad_noise"),
            coordinate_names=tuple(trace.coordinate_names),
            coordinate_owners=np.array([trace.parameters.index(name) for name in coordinates["parameter"]], np.int64),
            coordinate_indices=coordinates["index"].to_numpy(np.int64),
            attributes={name: value for name, value in trace.metadata.items() if name not in OWN_ATTRIBUTES},
            norms=tuple(norm for norm in ("linf", "spectral") if trace.has(f"{norm}/grad_diff")),
            format_version=version,
        )
        rows = {field.name: trace.read(field.name) for field in made.fields()}
        next_step = trace.next_step
    writer = TraceWriter(path, made, "w")
    writer.append(rows)
    writer.close(next_step)
    return made
