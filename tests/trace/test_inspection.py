"""A trace that comes by mail: it is read or refused in a sentence, and never hangs, crashes, or tells of other files.

`tests/hostile.py` has the edits; `make fuzz` goes on with them for as long as it is told.
"""

import random

import h5py
import hostile
import numpy as np
import pytest
from rows import header, rows

from lsmooth.errors import TraceError
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    hostile.secrets(folder)
    return folder


@pytest.fixture(scope="module")
def sound(folder):
    made = header(norms=("linf",), densities=True)
    writer = TraceWriter(folder / "sound.h5", made)
    writer.append(rows(made, 0, 70))
    writer.close()
    assert hostile.tried(folder / "sound.h5") == "read"
    return folder / "sound.h5"


@pytest.mark.parametrize("edit", hostile.EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_trace_is_read_or_refused(folder, sound, edit):
    path = folder / "run.h5"
    hostile.prepare(sound, path, folder, [edit], seed=0)
    assert hostile.tried(path) in ("read", "refused")


@pytest.mark.parametrize("seed", range(8))
def test_a_trace_with_several_edits_is_read_or_refused(folder, sound, seed):
    edits = random.Random(seed).choices(hostile.EDITS, k=3)
    hostile.prepare(sound, folder / "run.h5", folder, edits, seed)
    assert hostile.tried(folder / "run.h5") in ("read", "refused"), [edit.__name__ for edit in edits]


# --- each thing that is refused, and why ---


def edited(sound, path, change):
    """Return why an edited copy of a trace is refused; what the header's checksum says is put right."""

    def edit(file, generator, folder):
        change(file)

    hostile.prepare(sound, path, path.parent, [edit], 0)
    with pytest.raises(TraceError) as caught:
        Trace(path)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said.removeprefix(f"{path} is not as a Recorder writes traces: ").removesuffix(
        "; use the file that the run wrote."
    )


def instead(name, **arguments):
    def change(file):
        hostile.replaced(file, name, **arguments)

    return change


def linked(name, link):
    def change(file):
        del file[name]
        file[name] = link

    return change


def deeper(file):
    file.create_group("a/b/c/d")


def made_of_others(file):
    source = h5py.VirtualSource("secret.h5", "secret", shape=(70,))
    made = h5py.VirtualLayout(shape=(70,), dtype="f8")
    made[:] = source
    del file["loss"]
    file.create_virtual_dataset("loss", made)


def swollen(file):
    """A hundred kilobytes that become a hundred megabytes."""
    texts = hostile.replaced(file, "parameter", shape=(10, 10**7), dtype="S1", chunks=(1, 10**7), compression="gzip")
    texts[...] = b""


def larger(name, rows):
    return lambda file: file[name].resize(rows, axis=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (instead("loss", shape=(70,), dtype="f8", external=[("secret.txt", 0, 560)]), "'loss' lies in another file"),
        (made_of_others, "'loss' is made of other datasets"),
        (linked("loss", h5py.ExternalLink("secret.h5", "secret")), "'loss' is a link to something else"),
        (linked("step", h5py.SoftLink("/loss")), "'step' is a link to something else"),
        (linked("parameter", h5py.SoftLink("/parameter")), "'parameter' is a link to something else"),
        (linked("loss", np.dtype("f8")), "'loss' is neither a dataset nor a group"),
        (deeper, "'a/b/c' is a group too deep inside others"),
        (lambda file: file.create_dataset("more", data=b"text", dtype=h5py.string_dtype()), "texts of variable length"),
        (lambda file: file.create_dataset("more", shape=(3,), dtype=h5py.ref_dtype), "holds neither numbers nor texts"),
        (lambda file: file.create_dataset("more", shape=(9,), chunks=(9,), scaleoffset=2), "needs a filter that"),
        (lambda file: file.create_dataset("more", shape=(10**9,), chunks=(10,)), "claims more values than the file"),
        (larger("loss", 10**12), "'loss' claims more values than the file could hold"),
        (instead("loss", shape=(70,), maxshape=(None,), dtype="f4", chunks=(32,)), "loss has numbers of another kind"),
        (instead("loss", shape=(70,), maxshape=(None,), dtype="f8", chunks=(64,)), "loss is not cut into chunks as in"),
        (instead("loss", shape=(70, 2), maxshape=(None, 2), dtype="f8", chunks=(32, 2)), "loss has not the dimensions"),
        (instead("gamma", data=[0.5, 0.6, 0.7]), "loss_along has not the dimensions step, gamma"),
        (instead("parameter_size", data=np.arange(4, dtype="i4")), "parameter_size has numbers of another kind"),
        (instead("parameter", data=np.arange(4)), "parameter holds no names"),
        (swollen, "parameter is larger than in any trace"),
        (lambda file: file.__delitem__("recent/closed"), "it has no recent/closed"),
        (lambda file: file.__delitem__("coordinate/grad"), "it has no coordinate/grad"),
    ],
)  # fmt: skip
def test_what_no_trace_has_is_refused_with_its_name(folder, sound, change, reason):
    assert reason in edited(sound, folder / "run.h5", change)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("model", "of variable length", "is not of a kind that traces have"),
        ("model", np.arange(3), "the attribute model is neither a text nor a number"),
        ("model", np.bytes_(b"\xff"), "can't decode byte"),
        ("optimizer_groups", np.bytes_(b'[{"lr": "high"}]'), "lr of optimizer_groups is no number"),
        ("optimizer_groups", np.bytes_(b'{"lr": 1}'), "optimizer_groups is not a list of groups"),
        ("user_metadata", np.bytes_(b"[1]"), "user_metadata is no object"),
        ("user_metadata", np.bytes_(b"[" * 60_000), "maximum recursion depth"),
    ],
)
def test_attributes_of_other_kinds_are_refused(folder, sound, name, value, reason):
    assert reason in edited(sound, folder / "run.h5", lambda file: file.attrs.__setitem__(name, value))


def test_what_a_later_format_adds_may_be_there(folder, sound):
    def edit(file, generator, place):
        file.create_dataset(
            "not_known_yet", shape=(70, 4), maxshape=(None, 4), chunks=(32, 4), dtype="f4", data=np.ones((70, 4))
        )
        file.create_dataset("later/note", data=np.arange(5))
        file.attrs["later"] = 1.5

    hostile.prepare(sound, folder / "run.h5", folder, [edit], 0)
    with Trace(folder / "run.h5") as trace:
        assert len(trace) == 70
        assert trace.metadata["later"] == 1.5
