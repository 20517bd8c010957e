"""What a trace says of itself, and what it says of something that it lacks."""

import subprocess
import sys

import pytest

from lsmooth.errors import InvalidArgumentError, TraceError


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
