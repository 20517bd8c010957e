"""Fixtures that several areas share."""

import os

# Tests run side by side, one a core: threads of their own would wait for one another. Before torch is imported, and for
# the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def small_trace(tmp_path_factory):
    """Path of the trace of a small real run; tests must not write to it."""
    from small_trace import write_small_trace

    return write_small_trace(tmp_path_factory.mktemp("small") / "small.h5")


def pytest_addoption(parser):
    parser.addoption(
        "--renew-images",
        action="store_true",
        help="draw the pictures that tests/figures/test_images.py compares with anew, in place of comparing",
    )
