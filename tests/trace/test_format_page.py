"""What docs/trace-format.md says: its reader reads, and its tables name what is in a file."""

import re
from pathlib import Path

import numpy as np
import pytest
from rows import header, rows

from lsmooth.trace import layout
from lsmooth.trace.layout import CHUNK_STEPS, FIELDS, GEOMETRIES, Status
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

PAGE = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text()


def reader():
    (code,) = re.findall(r"```python\n(import json.*?)```", PAGE, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 24
    found = {}
    exec(code, found)
    return found["read_trace"]


@pytest.mark.parametrize("count", [0, 5, CHUNK_STEPS, 2 * CHUNK_STEPS + 30])
@pytest.mark.parametrize("end", ["growing", "killed", "closed"])
def test_the_pages_reader_reads_every_row(tmp_path, count, end):
    made = header()
    writer = TraceWriter(tmp_path / "run.h5", made)
    if count:
        writer.append(rows(made, 0, count))
    if end == "killed":
        writer.abandon()
    elif end == "closed":
        writer.close()
    data = reader()(tmp_path / "run.h5")
    trace = Trace(tmp_path / "run.h5")
    assert set(data) == {field.name for field in FIELDS if trace.has(field.name)}
    for name, values in data.items():
        assert len(values) == count
        np.testing.assert_array_equal(values, trace.read(name))
    writer.close()


def test_the_pages_reader_leaves_out_a_row_that_was_cut_off(tmp_path):
    made = header()
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, 40))
    writer.abandon()
    data = bytearray((tmp_path / "run.h5").read_bytes())
    last = rows(made, 39, 40)["loss"].astype("<f8").tobytes()
    data[data.rindex(last)] ^= 1
    (tmp_path / "run.h5").write_bytes(data)
    assert len(reader()(tmp_path / "run.h5")["step"]) == len(Trace(tmp_path / "run.h5")) == 39


def test_the_tables_name_every_dataset_dimension_and_flag():
    for field in FIELDS:
        folder = field.name.split("/")[0]
        name = f"{folder}/…" if folder in GEOMETRIES else field.name
        assert f"`{name}`" in PAGE
    for flag in Status:
        assert re.search(rf"\| {int(flag)} \| {str(flag.name).lower().replace('_', ' ')} \|", PAGE)
    assert f"format version **{layout.FORMAT_VERSION}**" in PAGE
    assert f"Chunks hold {CHUNK_STEPS} steps (and at most {layout.CHUNK_WIDTH} parameters" in PAGE


def test_every_root_attribute_of_a_real_trace_is_on_the_page(small_trace):
    assert [name for name in Trace(small_trace).metadata if f"`{name}`" not in PAGE] == []
