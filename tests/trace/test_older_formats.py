"""Traces that earlier versions wrote, kept beside this file: they are read, and they are continued."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from rows import assert_rows, header, rows

from lsmooth.trace.layout import FORMAT_VERSION
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

OLDER = Path(__file__).with_name("older")
ROWS = 37


def made(version):
    return header(
        parameters=("a.weight", "b.bias"), coordinates=2, norms=("linf", "spectral"), noise=True, format_version=version
    )


@pytest.mark.parametrize("path", sorted(OLDER.glob("*.h5")), ids=lambda path: path.stem)
def test_a_trace_of_an_earlier_format_is_read_and_continued(tmp_path, path):
    version, end = path.stem.split("-", 1)
    with Trace(path) as trace:
        assert trace.metadata["format_version"] == version
        assert_rows(trace, made(version), ROWS, rtol=3e-7)
        assert trace.has("slope") == (version != "1.0")
        assert trace.state == ("complete" if end == "closed" else "cut off")
        assert trace.next_step == (400 if end == "closed" else 361)
        assert trace.parameters == ["a.weight", "b.bias"]
        assert trace.coordinate_names == ["a.weight[0]", "a.weight[1]"]
        trace.cloud("module", norm="spectral")
        trace.to_frame()
    new = tmp_path / "run.h5"
    shutil.copy(path, new)
    writer = TraceWriter(new, made(FORMAT_VERSION), "a")
    writer.append(rows(made(FORMAT_VERSION), ROWS, 80))
    writer.close()
    with Trace(new) as trace:
        assert trace.metadata["format_version"] == FORMAT_VERSION
        for name, values in rows(made(FORMAT_VERSION), 0, 80).items():
            read, known = trace.read(name), 0 if name in rows(made(version), 0, 1) else ROWS
            assert np.isnan(read[:known]).all()
            expected = values[known:].astype(read.dtype)
            np.testing.assert_allclose(read[known:], expected, rtol=3e-7, atol=0, err_msg=name)


def test_both_earlier_formats_are_there():
    assert {path.stem.split("-")[0] for path in OLDER.glob("*.h5")} == {"1.0", "1.1"}
