"""Fixtures that several areas share."""

import faulthandler
import gc
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
# cuBLAS adds in the same order every time only if this variable limits its work memory.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request, monkeypatch):
    """The name of the device on which tensors are made by default in a test."""
    if request.param == "cpu":
        yield request.param
    else:
        # Some of cuDNN's algorithms add in the order in which threads happen to finish.
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        with torch.device(request.param):
            yield request.param


@pytest.fixture
def model():
    """A small network with dropout, made from a fixed seed."""
    from loops import mlp, seed_all

    seed_all()
    return mlp(torch.nn.Dropout(0.2))


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """End the process of a test that hangs without reacting to signals: it is named, and other tests go on."""
    marker = item.get_closest_marker("timeout")
    limit = float(marker.args[0] if marker else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(limit + 60, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_collection_finish():
    """Leave what was imported out of every garbage collection to come: there is much of it, and all of it stays."""
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption(
        "--renew-images",
        action="store_true",
        help="draw the pictures that tests/figures/test_images.py compares with anew, in place of comparing",
    )
    parser.addoption(
        "--renew-tutorial",
        action="store_true",
        help="keep what the cells of docs/tutorial.ipynb print when tests/test_tutorial.py runs them",
    )
