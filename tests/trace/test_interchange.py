"""A trace in other tools' hands: netCDF-4 for xarray and netCDF4, tables for pandas, and a copy made while it grows."""

import contextlib
import shutil
import subprocess

import h5py
import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray
from click.testing import CliRunner
from rows import assert_rows, header, rows

from lsmooth.cli import main
from lsmooth.errors import TraceError
from lsmooth.trace.layout import CHUNK_STEPS, FIELDS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.mark.parametrize("engine", [None, "netcdf4", "h5netcdf"])
def test_xarray_sees_named_dimensions_and_coordinates(full_trace, engine):
    trace = Trace(full_trace)
    with xarray.open_dataset(full_trace, engine=engine) as dataset:
        assert dict(dataset.sizes) == {"step": 64, "gamma": 2, "parameter": 4, "group": 2}
        assert set(dataset.coords) == {"step", "gamma", "parameter", "group"}
        assert dataset["parameter"].values.tolist() == trace.parameters
        chosen = dataset["grad_diff"].sel(parameter="head.weight", step=100, gamma=0.5)
        assert float(chosen) == trace.read("grad_diff")[10, 1, 3]
        assert (
            dataset["time"].attrs["long_name"] == "seconds since the run began, without the gaps before it was resumed"
        )
        assert dataset["status"].attrs["flag_meanings"].startswith("measured no_displacement below_resolution")
        assert dataset.attrs["model"] == "Made"
    with xarray.open_dataset(full_trace, engine=engine, group="coordinate") as dataset:
        assert dataset["grad_along"].dims == ("step", "gamma", "coordinate")
        assert dataset["coordinate"].values.tolist() == trace.coordinate_names
        np.testing.assert_array_equal(dataset["grad_along"], trace.read("coordinate/grad_along"))


def test_netcdf4_sees_every_dataset_with_named_dimensions(full_trace):
    trace = Trace(full_trace)
    with netCDF4.Dataset(full_trace) as dataset:
        for field in FIELDS:
            if trace.has(field.name):
                variable = dataset[field.name]
                assert variable.dimensions == field.dims
                assert variable.long_name == field.description
                assert variable.units == field.units
                np.testing.assert_array_equal(variable[:], trace.read(field.name))
        assert dataset["parameter"][:].tolist() == trace.parameters
        assert dataset["density/counts"].dimensions == ("copy", "parameter", "grad_bin", "smoothness_bin")
        assert dataset["recent/rows"].dimensions == ("slot", "byte")


@pytest.mark.parametrize("engine", [None, "netcdf4", "h5netcdf"])
def test_every_group_opens_and_names_are_text_in_any_language(tmp_path, engine):
    made = header(parameters=("кодировщик.вес", "層.重み", "b"), norms=("linf", "spectral"), densities=True)
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, 3))
    writer.close()
    with contextlib.closing(xarray.open_datatree(tmp_path / "run.h5", engine=engine)) as tree:
        groups = {field.name.split("/")[0] for field in made.fields() if "/" in field.name}
        assert groups | {"density", "recent"} == set(tree.children)
        assert tree["parameter"].values.tolist() == list(made.parameters)
        assert tree["coordinate/coordinate"].values.tolist() == list(made.coordinate_names)
        assert tree["density/counts"].dims == ("copy", "parameter", "grad_bin", "smoothness_bin")


def layout_versions(data):
    """Return the version of each dataset's layout message: 4 came with HDF5 1.10, 5 with 2.0."""
    found, at = [], -1
    while (at := data.find(b"OHDR\x02", at + 1)) >= 0:
        flags, place = data[at + 5], at + 6
        place += 16 * bool(flags & 32) + 4 * bool(flags & 16)
        width = 1 << (flags & 3)
        end = place + width + int.from_bytes(data[place : place + width], "little")
        place += width
        while place + 4 <= end:
            kind, size = data[place], int.from_bytes(data[place + 1 : place + 3], "little")
            place += 4 + 2 * bool(flags & 4)
            if kind == 8:
                found.append(data[place])
            place += size
    return found


def test_tools_with_hdf5_1_10_can_read_it(full_trace):
    """Those of Debian 12, for one; h5py's own HDF5 is newer, and so may be netCDF4's."""
    found = layout_versions(full_trace.read_bytes())
    assert len(found) > 30
    assert set(found) <= {3, 4}


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="needs h5dump")
def test_h5dump_shows_names_units_and_descriptions(full_trace):
    done = subprocess.run(["h5dump", "-A", full_trace], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for field in FIELDS:
        if Trace(full_trace).has(field.name):
            assert field.description in done.stdout


def export(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.mark.parametrize("by", [None, "global", "module", "parameter", "coordinate", r"(encoder)|(decoder)"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_exported_tables_hold_the_same_numbers(small_trace, tmp_path, by, suffix):
    output = tmp_path / f"out{suffix}"
    done = export(small_trace, "-o", output, *([] if by is None else ["--by", by]))
    assert done.exit_code == 0, done.output
    trace = Trace(small_trace)
    expected = trace.to_frame() if by is None else trace.smoothness(by).astype({"group": str})
    read = pd.read_csv(output, float_precision="round_trip") if suffix == ".csv" else pd.read_parquet(output)
    assert f"({len(expected)} rows)" in done.output
    if by is not None:
        read = read.astype({"group": str})
    pd.testing.assert_frame_equal(read, expected, check_dtype=False, check_exact=True)


def test_exported_netcdf_is_the_whole_trace_or_a_grouping(small_trace, tmp_path):
    trace = Trace(small_trace)
    assert export(small_trace, "-o", tmp_path / "all.nc").exit_code == 0
    with xarray.open_dataset(tmp_path / "all.nc") as dataset:
        xarray.testing.assert_equal(dataset.load(), trace.to_xarray())
    assert export(small_trace, "-o", tmp_path / "by.nc", "--by", "module").exit_code == 0
    with xarray.open_dataset(tmp_path / "by.nc") as dataset:
        cloud = trace.cloud("module")
        assert dataset["group"].values.tolist() == list(cloud.groups)
        np.testing.assert_array_equal(dataset["smoothness"], cloud.smoothness)
        np.testing.assert_array_equal(dataset["usable"], cloud.usable)


def test_export_refuses_what_would_lose_something(small_trace, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    for output, sentence in (
        (tmp_path / "out.xlsx", "ends in none of .csv, .parquet and .nc"),
        (tmp_path / "there.csv", "exists already; choose another name, or --force"),
        (tmp_path / "folder.csv", "is a folder"),
        *((tmp_path / "nowhere" / f"out{suffix}", "There is no folder") for suffix in (".csv", ".parquet", ".nc")),
    ):
        done = export(small_trace, "-o", output)
        assert done.exit_code == 1
        assert sentence in done.output
        assert len(done.output.splitlines()) == 1
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert export(small_trace, "-o", tmp_path / "there.csv", "--force").exit_code == 0
    link = tmp_path / "link.nc"
    link.symlink_to(small_trace)
    before = small_trace.read_bytes()
    assert "is the trace itself" in export(small_trace, "-o", link, "--force").output
    assert small_trace.read_bytes() == before


def test_export_divides_by_the_whole_step_where_it_is_asked_to(small_trace, tmp_path):
    done = export(small_trace, "-o", tmp_path / "out.csv", "--displacement", "global")
    assert done.exit_code == 2
    assert "--displacement goes with --by." in done.output
    assert export(small_trace, "-o", tmp_path / "out.csv", "--displacement", "global", "--by", "module").exit_code == 0
    expected = Trace(small_trace).smoothness("module", displacement="global")["smoothness"]
    read = pd.read_csv(tmp_path / "out.csv", float_precision="round_trip")
    np.testing.assert_array_equal(read["smoothness"], expected)


def test_copies_made_while_a_trace_grows_can_be_read(tmp_path):
    made = header()
    path = tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    lengths = []
    for row in range(0, 90, 6):
        writer.append(rows(made, row, row + 6))
        (tmp_path / "copy.h5").write_bytes(path.read_bytes())
        with Trace(tmp_path / "copy.h5") as copy:
            assert copy.state == "cut off"
            assert_rows(copy, made, row + 6)
            lengths.append(len(copy))
    writer.close()
    assert lengths[-1] == 90


def mixed(path, late, early, ranges):
    """Write a copy that has some ranges of bytes from an earlier moment than the rest."""
    data = bytearray(late)
    for start, stop in ranges:
        data[start:stop] = early[start:stop]
    path.write_bytes(data)
    return path


def test_a_copy_with_a_later_row_and_not_the_one_before_holds_what_comes_before_both(tmp_path):
    """As `cp` leaves it that has read a slot just before the row came into it, and the next slot just after."""
    made, path = header(), tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    for earlier, later in ((3, 8), (CHUNK_STEPS + 3, CHUNK_STEPS + 8)):
        writer.append(rows(made, writer.rows, earlier))
        early = path.read_bytes()
        writer.append(rows(made, earlier, later))
        late = path.read_bytes()
        with h5py.File(path) as file:
            slots = file["recent/rows"]
            start, width = slots.id.get_offset(), slots.shape[1]
        slot = start + (earlier + 2) % CHUNK_STEPS * width
        copy = mixed(tmp_path / "copy.h5", late, early, [(slot, slot + width)])
        with Trace(copy) as trace:
            assert_rows(trace, made, earlier + 2)
        # A slot that is damaged is no such thing.
        copy.write_bytes(late[: slot + 20] + bytes([late[slot + 20] ^ 1]) + late[slot + 21 :])
        with pytest.raises(TraceError, match=f"row {earlier + 2} does not match its checksum"):
            Trace(copy)
    writer.close()


def test_a_copy_with_older_parts_is_refused_or_right(tmp_path):
    """As tools leave it that take a growing file's parts in any order: HDF5 reads zeros for chunks that it misses."""
    made, path = header(), tmp_path / "run.h5"
    writer = TraceWriter(path, made)
    writer.append(rows(made, 0, CHUNK_STEPS))
    early = path.read_bytes()
    writer.append(rows(made, CHUNK_STEPS, 3 * CHUNK_STEPS))
    late = path.read_bytes()
    writer.close()
    changed = [at for at in range(0, len(early), 64) if early[at : at + 64] != late[at : at + 64]]
    holes, said = 0, set()
    # Each changed part by itself, and all from each on.
    for ranges in (*([(at, at + 64)] for at in changed), *([(at, len(early))] for at in changed)):
        copy = mixed(tmp_path / "copy.h5", late, early, ranges)
        with contextlib.suppress(Exception), h5py.File(copy) as file:
            holes += len(file["loss"]) == 3 * CHUNK_STEPS and not file["loss"][-1]
        try:
            with Trace(copy) as trace:
                assert_rows(trace, made, len(trace))
        except TraceError as error:
            said.add(str(error))
    assert holes > 0
    assert any("lacks rows that it counts" in sentence for sentence in said)
