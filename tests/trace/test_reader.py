"""What a trace says of itself, and what it says of something that it lacks."""

import subprocess
import sys

import pytest
from rows import header, rows

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

NAMES = (
    "embedding.weight",
    "layers.0.weight",
    "layers.0.bias",
    "layers.1.weight",
    "layers.1.bias",
    "head.weight",
    "scale",
)


COUNT = CHUNK_STEPS + 9


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    made = header(parameters=NAMES)
    path = tmp_path_factory.mktemp("reader") / "run.h5"
    writer = TraceWriter(path, made)
    numbers = rows(made, 0, COUNT)
    numbers["status"][3] = 2
    # One tensor stands still at one step.
    numbers["step_norm"][5, 1] = 0
    writer.append(numbers)
    writer.abandon()
    return Trace(path)


def test_what_a_trace_lacks_is_named(trace):
    with pytest.raises(TraceError, match="has no grad_noise; it holds coordinate/displacement"):
        trace.read("grad_noise")
    with pytest.raises(InvalidArgumentError, match="neither 'layer' nor 'global'"):
        trace.cloud(displacement="mine")
    assert "7 parameter tensors, 41 measured steps, 40 of them well" in repr(trace)


def test_reading_needs_no_torch(small_trace):
    code = (
        "import sys, lsmooth; trace = lsmooth.Trace(sys.argv[1]); trace.to_frame(); trace.cloud('module'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(small_trace)], check=True)
