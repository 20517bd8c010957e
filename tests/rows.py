"""Headers and rows of made-up measurements, for tests of the file itself."""

import numpy as np

from lsmooth.trace.header import Header
from lsmooth.trace.writer import TraceWriter

PARAMETERS = ("embedding.weight", "layers.0.weight", "layers.0.bias", "head.weight")

# The parameters of a larger network, and its modules.
NETWORK = (
    "embedding.weight",
    "layers.0.weight",
    "layers.0.bias",
    "layers.1.weight",
    "layers.1.bias",
    "head.weight",
    "scale",
)
MODULES_OF_NETWORK = {
    "embedding": NETWORK[:1],
    "layers.0": NETWORK[1:3],
    "layers.1": NETWORK[3:5],
    "head": NETWORK[5:6],
    "(root)": NETWORK[6:],
}


# Arguments of `header` with which every dataset along `step` is there.
EVERYTHING = {
    "noise": True,
    "critical": True,
    "blocks": True,
    "norms": ("linf", "spectral", "layers"),
}


def header(parameters=PARAMETERS, gammas=(0.25, 0.5), coordinates=3, **others):
    arguments = {
        "parameters": tuple(parameters),
        "parameter_sizes": tuple(range(10, 10 + len(parameters))),
        "gammas": tuple(gammas),
        "groups": 2,
        "real": "float32",
        "endpoint": True,
        "noise": False,
        "coordinate_names": tuple(f"{parameters[0]}[{i}]" for i in range(coordinates)),
        "coordinate_owners": np.zeros(coordinates, np.int64),
        "coordinate_indices": np.arange(coordinates),
        "attributes": {"model": "Made", "optimizer": "up", "optimizer_groups": [{"lr": 0.1}], "dtype": "float32"},
    }
    return Header(**(arguments | others))


def rows(header, start, stop):
    """Return rows `start` to `stop`: the same whichever way a run is cut into blocks."""
    sizes = header.sizes()
    found = {}
    for field in header.fields():
        if field.name.startswith("total_"):
            continue
        parts = []
        for row in range(start, stop):
            generator = np.random.default_rng([row, *field.name.encode()])
            if field.name == "step":
                parts.append(np.int64(10 * row))
            elif field.name == "status":
                parts.append(np.uint8(1))
            else:
                parts.append(np.exp(generator.normal(size=[sizes[name] for name in field.dims[1:]])))
        found[field.name] = np.array(parts)
    return found


def write_rows(path, count, *, end="close", **others):
    """Write a trace of `count` rows, end it by the writer's method of that name, and return its header."""
    made = header(**others)
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, count))
    getattr(writer, end)()
    return made


def assert_rows(trace, header, count, rtol=0.0):
    """Compare every number of a trace with what `rows` returns for its first `count` rows.

    Another machine's files need a tolerance: the last digit of NumPy's exp depends on the CPU.
    """
    assert len(trace) == count
    expected = rows(header, 0, count) if count else {}
    for name, values in expected.items():
        read = trace.read(name)
        np.testing.assert_allclose(read, values.astype(read.dtype), rtol=rtol, atol=0, err_msg=name)
