"""Fixtures that several areas share."""

import os
import resource
import signal

# A shell starts what it runs in the background with Ctrl-C ignored, and every process below inherits that; tests are
# about what Ctrl-C does where it is heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run side by side, one a core: threads of their own would wait for one another. Before torch is imported, and for
# the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def small_trace(tmp_path_factory):
    """Path of the trace of a small real run; tests must not write to it."""
    from small_trace import write_small_trace

    return write_small_trace(tmp_path_factory.mktemp("small") / "small.h5")


@pytest.fixture
def small_files():
    """A function that keeps all files from growing beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def pytest_addoption(parser):
    parser.addoption(
        "--renew-images",
        action="store_true",
        help="draw the pictures that tests/figures/test_images.py compares with anew, in place of comparing",
    )
