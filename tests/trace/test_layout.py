"""The table of datasets: one `Field` more is enough for the file, the reader and the tables, and for older traces."""

from dataclasses import replace

import numpy as np
import pytest
from rows import assert_rows, header, rows

from lsmooth.errors import TraceError
from lsmooth.trace import layout
from lsmooth.trace.layout import (
    CHUNK_STEPS,
    FIELDS,
    FIRST_FORMAT,
    FORMAT_VERSION,
    GEOMETRIES,
    Field,
    fields_of,
    version_number,
)
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

LATER = "1.999"
COUNT = CHUNK_STEPS + 9


@pytest.fixture(
    params=[
        ("step",),
        ("step", "group"),
        ("step", "gamma"),
        ("step", "parameter"),
        ("step", "gamma", "parameter"),
        ("step", "coordinate"),
    ],
    ids="-".join,
)
def one_more(request, monkeypatch):
    """A quantity that comes with a later format, in the table of datasets."""
    kind = "float64" if request.param == ("step",) else "real"
    column = "freshness" if request.param in (("step",), ("step", "group")) else ""
    needs = "coordinates" if "coordinate" in request.param else ""
    field = Field("fresh", request.param, kind, "1", "not measured yet", since=LATER, needs=needs, column=column)
    monkeypatch.setattr(layout, "FIELDS", (*FIELDS[:3], field, *FIELDS[3:]))
    return field


def test_one_field_more_is_written_read_and_shown(tmp_path, one_more):
    made = header(format_version=LATER)
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, COUNT))
    trace = Trace(tmp_path / "run.h5")
    assert_rows(trace, made, COUNT)
    writer.close()
    trace.refresh()
    assert_rows(trace, made, COUNT)
    values = trace.read("fresh")
    assert values.shape == (COUNT, *(made.sizes()[name] for name in one_more.dims[1:]))
    dataset = trace.to_xarray()
    assert dataset["fresh"].dims == one_more.dims
    np.testing.assert_array_equal(dataset["fresh"], values)
    shown = {name: values for name, values in trace.to_frame().items() if name.startswith("freshness")}
    if one_more.dims == ("step",):
        np.testing.assert_array_equal(shown["freshness"], values)
    elif one_more.column:
        np.testing.assert_array_equal(np.stack([shown["freshness_0"], shown["freshness_1"]], axis=1), values)
    else:
        assert not shown


@pytest.mark.usefixtures("one_more")
@pytest.mark.parametrize("end", ["close", "abandon"])
@pytest.mark.parametrize("version", [FIRST_FORMAT, "1.1"])
def test_an_older_trace_is_continued_with_nan_where_it_had_no_such_field(tmp_path, version, end):
    path = tmp_path / "run.h5"
    old, made = header(format_version=version), header(format_version=LATER)
    writer = TraceWriter(path, old)
    writer.append(rows(old, 0, COUNT))
    getattr(writer, end)()
    with Trace(path) as trace:
        assert not trace.has("fresh")
        assert trace.has("slope") == (version != FIRST_FORMAT)
        assert_rows(trace, old, COUNT)
    writer = TraceWriter(path, made, "a")
    writer.append(rows(made, COUNT, 2 * COUNT))
    writer.close()
    with Trace(path) as trace:
        assert trace.metadata["format_version"] == LATER
        expected = rows(made, 0, 2 * COUNT)
        for name, values in expected.items():
            read = trace.read(name)
            if version_number(version) < version_number(next(f.since for f in layout.FIELDS if f.name == name)):
                assert np.isnan(read[:COUNT]).all(), name
                read, values = read[COUNT:], values[COUNT:]
            np.testing.assert_array_equal(read, values.astype(read.dtype), err_msg=name)


@pytest.mark.usefixtures("one_more")
def test_a_trace_that_should_have_the_field_and_has_not_is_another_run(tmp_path):
    """Of a format that has it, a trace without it measured less."""
    path = tmp_path / "run.h5"
    with pytest.MonkeyPatch.context() as before:
        before.setattr(layout, "FIELDS", FIELDS)
        TraceWriter(path, header(format_version=LATER)).close()
    with pytest.raises(TraceError, match="only one of the two has fresh"):
        TraceWriter(path, header(format_version=LATER), "a")


def test_every_field_that_came_later_can_be_nan():
    later = [field for field in FIELDS if field.since != FIRST_FORMAT]
    assert later
    assert {field.kind for field in later} <= {"real", "float64"}
    assert all(version_number(field.since) <= version_number(FORMAT_VERSION) for field in FIELDS)
    first = {field.name: field for field in fields_of(ALL, FIRST_FORMAT)}
    assert [field.name for field in FIELDS if field.name not in first] == [field.name for field in later]
    # One dataset is wider since.
    assert [field.name for field in FIELDS if field.name in first and field != first[field.name]] == ["status"]


ALL = frozenset({"endpoint", "coordinates", "noise", "linf", "spectral"})


def test_versions_are_compared_as_numbers():
    assert version_number("1.10") > version_number("1.9") > version_number("1.1")
    for wrong in ("1", "1.", "1.1.1", "a.b", "1.1\n", "-1.1", "", "1." + "9" * 50):
        with pytest.raises(ValueError, match="format version"):
            version_number(wrong)


def test_each_geometry_of_the_table_has_the_datasets_of_the_default_one():
    """A geometry is one entry of the table: nothing else lists what is kept of it."""
    names = {field.name for field in FIELDS}
    of_default = {"grad_norm", "step_norm", "grad_diff", "grad_diff_next"}
    assert names >= {geometry.dataset(quantity) for geometry in GEOMETRIES.values() for quantity in of_default}


def test_a_geometry_more_is_a_geometry_more_to_fields(monkeypatch):
    one_more = replace(GEOMETRIES["linf"], name="l1", displacement="l1", gradient="linf")
    monkeypatch.setitem(GEOMETRIES, "l1", one_more)
    assert [f.name for f in layout.geometry_fields() if f.name.startswith("l1/")] == [
        "l1/grad_norm",
        "l1/step_norm",
        "l1/grad_diff",
        "l1/grad_diff_next",
        "l1/grad_noise",
    ]
