"""What a trace says of itself, and what it says of something that it lacks."""

import subprocess
import sys

import pytest

import lsmooth
import lsmooth.advice
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


@pytest.mark.parametrize(
    "ask",
    [
        lsmooth.estimate,
        lambda path: lsmooth.estimate(path, by="density"),
        lsmooth.fit.compare,
        lsmooth.fit.estimate_noise,
        lsmooth.advice.advise,
    ],
)
def test_a_path_in_place_of_an_open_trace_is_refused(small_trace, ask):
    with pytest.raises(InvalidArgumentError, match=r"small\.h5.* is no open trace; give lsmooth\.Trace\(path\)"):
        ask(small_trace)
