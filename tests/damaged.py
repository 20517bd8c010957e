"""Damage to the bytes of a trace, and how well a damaged trace is read."""

import contextlib
import io
import random

import numpy as np

from lsmooth.cli import main
from lsmooth.errors import TraceError
from lsmooth.trace.curvature import edge_ratios
from lsmooth.trace.reader import Trace


def facts(path):
    """Return everything that a trace says, rows first: what is along `step`, and what is not."""
    with Trace(path) as trace:
        along = {name: trace.read(name) for name in sorted(trace._fields)}
        cloud = trace.cloud("module")
        along |= {"smoothness": cloud.smoothness, "cloud grad_norm": cloud.grad_norm}
        along["edge"] = edge_ratios(trace)
        if trace.has("critical_gamma"):
            along["critical"] = trace.critical_lr().drop(columns=["step", "usable"]).to_numpy()
        if trace.has("blocks/change"):
            # Every made-up row has numbers.
            along["blocks"] = trace.blocks()[["own", "others", "own_smoothness"]].to_numpy().reshape(len(trace), -1)
        fixed = {
            "parameters": trace.parameters,
            "sizes": trace.parameter_sizes.tolist(),
            "gammas": trace.gammas.tolist(),
            "coordinates": trace.coordinates.to_dict(),
            "metadata": trace.metadata,
            "state": trace.state,
        }
    return along, fixed


def damaged(data, seed):
    """Return a copy of a file, damaged in one of six ways, and the name of the way."""
    generator = random.Random(seed)
    found = bytearray(data)
    kind = ("cut", "bit", "header bit", "bytes", "zeros", "swap")[seed % 6]
    if kind == "cut":
        del found[generator.randrange(len(found)) :]
    elif kind in ("bit", "header bit"):
        # HDF5's structures and the names stand at the beginning, and are few among the data.
        found[generator.randrange(len(found) if kind == "bit" else 12_000)] ^= 1 << generator.randrange(8)
    elif kind == "bytes":
        for _ in range(generator.choice([2, 10, 200])):
            found[generator.randrange(len(found))] = generator.randrange(256)
    elif kind == "zeros":
        size = generator.choice([16, 512, 4096])
        start = generator.randrange(len(found) - size)
        found[start : start + size] = bytes(size)
    else:
        a, b = (512 * generator.randrange(len(found) // 512 - 1) for _ in range(2))
        found[a : a + 512], found[b : b + 512] = found[b : b + 512], found[a : a + 512]
    return bytes(found), kind


def judge(path, good, whole):
    """Read a damaged file in every way; return what went wrong ("" for nothing), and whether it was read."""
    wrong = ""
    read = False
    along, fixed = good
    try:
        now, rest = facts(path)
        read = True
        count = len(now["step"])
        # A row that was being written when a run was killed does not count: of a run that was cut off, the last rows
        # may be missing, and none else.
        if count != whole and (fixed["state"] == "complete" or count > whole):
            wrong = f"{count} rows"
        for name, values in along.items():
            if not np.array_equal(now[name], values[:count], equal_nan=True):
                wrong += f" {name} differs"
        for name, value in fixed.items():
            if rest[name] != value:
                wrong += f" {name} differs"
    except TraceError as error:
        if "\n" in str(error) or str(path) not in str(error):
            wrong = f"not one sentence: {error}"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["info", str(path), "--json"], standalone_mode=True)
        except SystemExit as exit:
            code = exit.code or 0
    lines = err.getvalue().splitlines()
    if code == 0:
        read_well = not lines and out.getvalue().startswith("{")
    else:
        read_well = code == 1 and len(lines) == 1 and lines[0].startswith("Error: ") and not out.getvalue()
    if not read_well:
        wrong += f" info: exit code {code}, {err.getvalue()!r}"
    return wrong, read
