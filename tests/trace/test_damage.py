"""Damaged files: each reads right, or ends in one sentence and exit code 1; no traceback, hang, crash or wrong number.

Cases run in forked processes, so that a crash of the interpreter or a hang is seen for what it is.
"""

import contextlib
import io
import os

import h5py
import numpy as np
import pytest
from damaged import damaged, facts, judge
from forked import forked, without_rights
from rows import EVERYTHING, header, rows

from lsmooth.cli import main
from lsmooth.errors import TraceError
from lsmooth.trace import layout
from lsmooth.trace.layout import FORMAT_VERSION
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

CASES = 100
# HDF5 before 2.0 crashes by itself in a few of these, where no check of ours comes first.
HDF5_CRASHES = h5py.version.hdf5_version_tuple < (2, 0, 0)


@pytest.mark.parametrize("end", ["complete", "cut off"])
def test_damaged_files_read_right_or_end_in_one_sentence(tmp_path, end):
    names = [f"layers.{i}.weight" for i in range(20)]
    attributes = {"blocks": ["first"] * 10 + ["last"] * 10, "layer_norms": ["l2"] * 20, "probes": 2}
    made = header(parameters=names, attributes=attributes, **EVERYTHING)
    assert {field.name for field in made.fields()} == {field.name for field in layout.FIELDS}
    path = tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    for start in range(0, 150, 50):
        writer.append(rows(made, start, start + 50))
    if end == "complete":
        writer.close()
    else:
        writer.abandon()
    data, good = path.read_bytes(), facts(path)
    assert good[1]["state"] == end

    def batch(seeds):
        answers, counts = [], [0, 0]
        for seed in seeds:
            changed, kind = damaged(data, seed)
            path.write_bytes(changed)
            wrong, read = judge(path, good, 150)
            counts[read] += 1
            if wrong:
                answers.append(f"case {seed} ({kind}): {wrong}")
        return "\n".join(answers) or f"fine {counts[0]} {counts[1]}"

    refused = read = crashed = 0
    problems = []
    for start in range(0, CASES, 25):
        answer = forked(lambda start=start: batch(range(start, start + 25)))
        if HDF5_CRASHES and answer == "ended by SIGSEGV":
            crashed += 1
        elif answer.startswith("fine"):
            refused, read = refused + int(answer.split()[1]), read + int(answer.split()[2])
        else:
            problems.append(f"cases from {start}: {answer}")
    assert not problems, "\n".join(problems)
    assert crashed <= 2
    # Both ends happen: some damage is of no consequence, most is noticed.
    assert refused > 40
    assert read > 2


@pytest.mark.parametrize(
    "kind", ["empty", "text", "zip", "other HDF5", "netCDF-3", "signature", "folder", "pipe", "none"]
)
def test_what_is_no_trace_ends_in_one_sentence(tmp_path, kind):
    path = tmp_path / "run.h5"
    contents = {
        "empty": b"",
        "text": b"step,loss\n0,1\n",
        "zip": b"PK\3\4" + bytes(100),
        "netCDF-3": b"CDF\1" + bytes(60),
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "signature":
        path.write_bytes(b"\x89HDF\r\n\x1a\n")
    elif kind == "other HDF5":
        with h5py.File(path, "w") as file:
            file["loss"] = [1.0, 2.0]
            file.attrs["format"] = "something else"
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)

    def work():
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            main(["info", str(path)])
        return err.getvalue()

    answer = forked(work)
    assert answer.startswith("Error: ")
    assert str(path) in answer
    assert len(answer.splitlines()) == 1


def test_file_without_permission_ends_in_one_sentence(tmp_path):
    path = tmp_path / "run.h5"
    TraceWriter(path, header()).close()
    path.chmod(0)

    def work():
        without_rights(tmp_path)
        try:
            Trace(path)
        except TraceError as error:
            return str(error)
        return "read"

    assert forked(work) == f"{path} cannot be read: Permission denied."


@pytest.mark.parametrize("version", ["2.0", "10.3"])
def test_newer_major_version_names_who_reads_it(tmp_path, version):
    path = tmp_path / "run.h5"
    TraceWriter(path, header(attributes={"lsmooth_version": "7.1.0"}, format_version=version)).close()
    with pytest.raises(TraceError) as caught:
        Trace(path)
    assert f"has trace format {version}, this lsmooth reads up to {FORMAT_VERSION}" in str(caught.value)
    assert "upgrade lsmooth to 7.1.0 or later" in str(caught.value)


def test_newer_minor_version_with_more_datasets_is_read(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    more = (layout.Field("not_known_yet", ("step", "parameter"), "real", "1", "not known yet"), *layout.FIELDS)
    made = header(format_version="1.7")
    with monkeypatch.context() as later:
        later.setattr(layout, "FIELDS", more)
        opened = TraceWriter(path, made)
        opened.append(rows(made, 0, 40))
        opened.abandon()
    trace = Trace(path)
    assert trace.metadata["format_version"] == "1.7"
    np.testing.assert_array_equal(trace.read("grad_norm"), rows(made, 0, 40)["grad_norm"].astype("f4"))


@pytest.mark.parametrize("densities", [False, True])
def test_every_chunk_is_under_a_checksum_that_tells_of_one_flipped_bit(tmp_path, densities):
    made = header(parameters=[f"p{i}" for i in range(70)], norms=("linf",), noise=True, densities=densities)
    path = tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, 40))
    writer.close()
    chunks, whole = {}, set()

    def look(name, item):
        if isinstance(item, h5py.Dataset):
            if item.chunks is None:
                if item.id.get_storage_size():
                    whole.add(name.split("/")[0])
                return
            assert item.fletcher32, name
            chunks[name] = [item.id.get_chunk_info(i) for i in range(item.id.get_num_chunks())]

    with h5py.File(path) as file:
        file.visititems(look)
    # What is not in chunks carries checksums of its own; the rest has no values.
    assert whole == {"recent", *(["density"] if densities else [])}
    fields = {field.name for field in made.fields()}
    assert fields <= set(chunks)
    data = path.read_bytes()
    for name, parts in chunks.items():
        assert parts, name
        for part in parts:
            changed = bytearray(data)
            changed[part.byte_offset + part.size // 2] ^= 16
            path.write_bytes(changed)
            with pytest.raises(TraceError, match=name if name in fields else "header"):
                facts(path)
