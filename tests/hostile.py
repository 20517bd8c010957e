"""Traces that somebody has prepared: edits of a sound one that HDF5 itself calls valid, or nearly.

Each edit starts from a trace whose structures are in order and changes what they say: kinds, shapes, sizes, links,
storage, filters, texts. `make fuzz` tries edits, alone and several at once, for as long as it is told; the suite tries
each edit once, and some mixtures.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import warnings
from pathlib import Path

import h5netcdf  # noqa: F401  what every child would import anew
import h5py
import numpy as np
import xarray  # noqa: F401
from forked import forked

import lsmooth.cli.export
import lsmooth.cli.info
import lsmooth.cli.tail  # noqa: F401
from lsmooth.cli import main
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.trace import header_sum
from lsmooth.trace.reader import Trace

SECRET = "the contents of another file " * 40
MEMORY = 3 << 30
SECONDS = 20


def replaced(file, name, **arguments):
    """Replace a dataset by one made otherwise, with the same attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, **arguments)
    for key, value in attributes.items():
        if key not in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME"):
            made.attrs[key] = value
    return made


def any_dataset(file, g, chosen=None):
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return g.choice(sorted(chosen or names))


# --- what leads out of the file ---


def virtual(file, g, folder):
    name = any_dataset(file, g)
    shape, kind = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape=shape or (1,), dtype=kind)
    source = h5py.VirtualSource(str(folder / "secret.h5"), "secret", shape=shape or (1,))
    layout[...] = source
    del file[name]
    file.create_virtual_dataset(name, layout)


def external(file, g, folder):
    name = g.choice(["loss", "time", "parameter_size", "gamma", "recent/rows", "recent/closed", "status"])
    shape, kind = file[name].shape, file[name].dtype
    size = max(1, int(np.prod(shape)) * kind.itemsize)
    replaced(file, name, shape=shape, dtype=kind, external=[(str(folder / "secret.txt"), 0, size)])


def external_name(file, g, folder):
    """The names of parameters are read from another file, and printed."""
    replaced(file, "parameter", shape=(4,), dtype="S50", external=[(str(folder / "secret.txt"), 0, 200)])


def external_link(file, g, folder):
    name = any_dataset(file, g)
    del file[name]
    file[name] = h5py.ExternalLink(str(folder / g.choice(["secret.h5", "gone.h5", "/dev/stdin"])), "secret")


def soft_link(file, g, folder):
    name = any_dataset(file, g)
    del file[name]
    file[name] = h5py.SoftLink(g.choice(["/step", f"/{name}", "/nowhere", "/", "/recent/rows"]))


def linked_group(file, g, folder):
    file[g.choice(["more", "coordinate/more", "recent/more"])] = g.choice(
        [h5py.ExternalLink(str(folder / "secret.h5"), "/"), h5py.SoftLink("/"), h5py.SoftLink("/more")]
    )


# --- groups without end ---


def deep_groups(file, g, folder):
    group = file
    for _ in range(g.choice([4, 100, 2000])):
        group = group.create_group("in")


def circle(file, g, folder):
    file[g.choice(["again", "recent/again", "coordinate/again"])] = file


def many_objects(file, g, folder):
    group = file.create_group("many")
    for i in range(1500):
        group.create_group(str(i))


def same_twice(file, g, folder):
    """Two names for one dataset: its room counts twice."""
    names = ["loss", "time", "total_grad_norm"]
    a, b = g.sample(names, 2)
    del file[a]
    file[a] = file[b]


def group_for_dataset(file, g, folder):
    name = any_dataset(file, g)
    del file[name]
    file.create_group(name)


def dataset_for_group(file, g, folder):
    name = g.choice(["coordinate", "recent"])
    del file[name]
    file[name] = np.arange(5)


def named_type(file, g, folder):
    name = any_dataset(file, g)
    del file[name]
    file[name] = np.dtype("f8")


def missing(file, g, folder):
    del file[any_dataset(file, g)]


# --- kinds, shapes and sizes ---


def other_kind(file, g, folder):
    name = any_dataset(file, g)
    kind = g.choice(
        [
            "i1",
            ">f8",
            "f2",
            "S3",
            "S1",
            h5py.string_dtype(),
            h5py.vlen_dtype(np.int32),
            "c16",
            "V7",
            "b1",
            h5py.ref_dtype,
            [("a", "i4"), ("b", "f8")],
            ("f4", (2,)),
            h5py.enum_dtype({"a": 1}),
            "u8",
        ]
    )
    shape = file[name].shape
    with_chunks = file[name].maxshape[:1] == (None,)
    replaced(file, name, shape=shape, dtype=kind, maxshape=(None, *shape[1:]) if with_chunks else None)


def other_shape(file, g, folder):
    name = any_dataset(file, g)
    kind, rank = file[name].dtype, file[name].ndim
    shape = g.choice(
        [
            (),
            (0,),
            (1,),
            (3,),
            (7, 5),
            (0,) * rank,
            (2,) * 6,
            (2,) * 30,
            (10**6,),
            (1, 10**9),
            (2**62,),
            (2**31, 2**31),
            (10**15, 1),
        ]
    )
    chunks = (
        tuple(min(size, 10) or 1 for size in shape)
        if shape and np.prod([float(size) for size in shape]) > 1e5
        else None
    )
    replaced(file, name, shape=shape, dtype=kind, chunks=chunks)


def more_rows(file, g, folder):
    names = [name for name in ("step", "loss", "status", "grad_norm", "coordinate/grad") if name in file]
    for name in g.choice([names, ["step"], ["loss"], list(file)]):
        if isinstance(file[name], h5py.Dataset) and file[name].maxshape[:1] == (None,):
            file[name].resize(g.choice([0, 1, 65, 10**6, 10**12, 2**62]), axis=0)


def bomb(file, g, folder):
    """A few bytes that become many."""
    name = g.choice(["loss", "grad_norm", "parameter_size", "gamma", "parameter"])
    kind = file[name].dtype
    size = g.choice([10**7, 2 * 10**8])
    chunk = max(1, min(size, 10**7) // kind.itemsize)
    made = replaced(
        file,
        name,
        shape=(size // kind.itemsize,),
        dtype=kind,
        maxshape=(None,),
        chunks=(chunk,),
        compression="gzip",
        compression_opts=9,
    )
    made[:chunk] = np.zeros(chunk, kind)


def huge_chunk(file, g, folder):
    name = g.choice(["loss", "time", "gamma", "grad_diff"])
    kind, shape = file[name].dtype, file[name].shape
    replaced(
        file,
        name,
        shape=shape,
        dtype=kind,
        maxshape=(None,) * len(shape),
        chunks=(2**20,) + (64,) * (len(shape) - 1),
        compression="gzip",
    )[:] = 0


def filters(file, g, folder):
    name = g.choice(["loss", "gamma", "parameter_size", "step"])
    values = file[name][:]
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((max(1, len(values)),))
    for number in g.choice([[1] * 8, [4, 1], [5], [6], [32015], [40000], [3, 3]]):
        plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (1,) if number in (1, 6) else ())
    del file[name]
    space = h5py.h5s.create_simple(values.shape, (h5py.h5s.UNLIMITED,))
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(values.dtype), space, plan)
    with contextlib.suppress(Exception):
        h5py.Dataset(made)[:] = values


# --- texts and numbers ---


def attribute(file, g, folder):
    item = g.choice([file, file["recent"], file["step"]])
    names = list(item.attrs) or ["format"]
    name = g.choice(
        [*names, "optimizer_groups", "user_metadata", "record", "format_version", "lsmooth_version", "extra"]
    )
    item = file["recent"] if name == "record" else item
    value = g.choice(
        [
            np.bytes_(b"\xff\xfe"),
            "a variable text",
            np.arange(5),
            np.zeros((2, 2)),
            h5py.Empty("f8"),
            np.int64(-(2**63)),
            np.float64("nan"),
            np.bytes_(b"[" * 50_000),
            np.bytes_(b'{"a": ' * 3000),
            np.bytes_(b"[1e999, 1" + b"0" * 5000 + b"]"),
            np.bytes_(b'[{"lr": "x"}]'),
            np.bytes_(b"[1, 2]"),
            np.bytes_(b'{"a": [1]}'),
            np.bytes_(b"\x1b]0;owned\x07\x1b[2J"),
            np.bytes_(b"9" * 5000 + b".1"),
            np.bytes_(b"1.1\n"),
            np.bytes_(b"999.0"),
            np.bytes_(b""),
            np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
            file.ref,
        ]
    )
    item.attrs[name] = value


def record(file, g, folder):
    members = json.loads(bytes(file["recent"].attrs["record"]))
    i = g.randrange(len(members))
    members[i] = g.choice(
        [
            ["x", "|O", []],
            [members[i][0], "|O", []],
            ["row", "<i8", [-1]],
            [members[i][0], "<f8", [2**40]],
            members[0],
            5,
            [members[i][0], "<f8,<i4", []],
            [members[i][0], "S9", []],
            [members[i][0], members[i][1], [2**31, 2**31, 0]],
            ["a\x00b", "<f8", []],
            [members[i][0], "<M8[s]", []],
            None,
            [None, None, None],
        ]
    )
    del file["recent"].attrs["record"]
    file["recent"].attrs["record"] = np.bytes_(json.dumps(members).encode())


def names(file, g, folder):
    """Names that a terminal or a spreadsheet obeys, that are no text, or that are there twice."""
    name = g.choice(["parameter", "coordinate/coordinate"])
    texts = g.choice(
        [b"\x1b]0;owned\x07", b"=HYPERLINK(1)", b"\xff\xfe", b"a\nb", b"", "\u202egpj".encode(), b"\x9b2J"]
    )
    values = file[name][:]
    if g.random() < 0.5:
        values[...] = b""
    width = values.shape[-1] if values.ndim == 2 else values.dtype.itemsize
    text = texts[:width].ljust(width, b"\0")
    values[0] = np.frombuffer(text, "S1") if values.ndim == 2 else text
    file[name][...] = values


def numbers(file, g, folder):
    name = g.choice(
        [
            "gamma",
            "parameter_size",
            "coordinate/parameter",
            "coordinate/index",
            "step",
            "status",
            "loss",
            "total_step_norm",
            "recent/closed",
            "recent/rows",
            "group",
        ]
    )
    values = file[name][:]
    if values.size:
        values.flat[g.randrange(values.size)] = (
            g.choice([0, 1, 200]) if values.dtype.kind == "u" else g.choice([-1, 0, 2**31])
        )
        if values.dtype.kind == "f" and g.random() < 0.5:
            values.flat[0] = g.choice([np.nan, np.inf, -1e300])
        file[name][...] = values


EDITS = (
    virtual,
    external,
    external_name,
    external_link,
    soft_link,
    linked_group,
    deep_groups,
    circle,
    many_objects,
    same_twice,
    group_for_dataset,
    dataset_for_group,
    named_type,
    missing,
    other_kind,
    other_shape,
    more_rows,
    bomb,
    huge_chunk,
    filters,
    attribute,
    record,
    names,
    numbers,
)


def prepare(sound, path, folder, edits, seed):
    """Write an edited copy of a trace, with its checksum over the header put right where that is possible.

    In a process of its own: HDF5 crashes at some of the edits, and what they had changed by then is tried all the same.
    """
    shutil.copy(sound, path)

    def work():
        generator = random.Random(seed)
        with h5py.File(path, "r+", libver=("v110", "v110")) as file:
            for edit in edits:
                with contextlib.suppress(KeyError, ValueError, TypeError, OSError, RuntimeError, AttributeError):
                    edit(file, generator, folder)
        # An attacker can compute the checksum, too.
        with h5py.File(path, "r+", libver=("v110", "v110")) as file:
            file.attrs[header_sum.NAME] = np.uint32(header_sum.header_sum(file))
        return ""

    forked(quietly(work), SECONDS)


def quietly(work):
    """Limit the memory of the work, close its input, and discard its output."""

    def bounded():
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()

    return bounded


def secrets(folder):
    (folder / "secret.txt").write_text(SECRET)
    with h5py.File(folder / "secret.h5", "w") as file:
        file["secret"] = np.frombuffer(SECRET.encode(), "u1")


def is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_everything(path):
    """Read a file in every way; return what went wrong, or whether it was "read" or "refused"."""
    told, outcome = [], "refused"
    try:
        with Trace(path) as trace:
            outcome = "read"
            told += [*trace.parameters, *trace.coordinate_names, repr(trace), json.dumps(trace.metadata)]
            for way in (
                trace.to_frame,
                trace.to_xarray,
                trace.cloud,
                lambda: trace.cloud("module"),
                lambda: trace.coordinates,
                lambda: trace.smoothness("parameter"),
                lambda: trace.smoothness("coordinate"),
                trace.refresh,
                lambda: trace.gradient_norm("module"),
                lambda: [trace.read(name) for name in ("grad_diff", "lr")],
            ):
                with contextlib.suppress(InvalidArgumentError):
                    try:
                        way()
                    except TraceError as error:
                        told.append(str(error))
    except TraceError as error:
        told.append(str(error))
    out, err = io.StringIO(), io.StringIO()
    commands = [["info", str(path)], ["info", str(path), "--json"], ["tail", "--no-follow", str(path)]]
    commands.append(["export", str(path), "-o", f"{path}.csv", "--by", "parameter", "--force"])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for command in commands:
            try:
                main(command, standalone_mode=True)
            except SystemExit as end:
                if end.code not in (0, 1, None):
                    return f"{command} ended with {end.code}"
    told += [*out.getvalue().splitlines(), *err.getvalue().splitlines()]
    if any(not char.isprintable() for line in told for char in line):
        return f"not printable: {[line for line in told if not line.isprintable()][:3]}"
    if any(SECRET[:9] in line for line in told):
        return "another file's contents"
    table = Path(f"{path}.csv")
    if table.exists():
        cells = [cell for line in table.read_text().splitlines() for cell in line.split(",")]
        table.unlink()
        bad = [
            cell
            for cell in cells
            if cell[:1] in "=@+" or (cell[:1] == "-" and not cell[1:2].isdigit() and cell[1:] != "inf")
        ]
        if any(cell for cell in bad if cell):
            return f"a formula: {bad[:3]}"
    return outcome


def tried(path):
    """Read a file in a process of its own; return "read", "refused", or what went wrong."""
    return forked(quietly(lambda: read_everything(path)), SECONDS)
