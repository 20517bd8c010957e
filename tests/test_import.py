"""What importing lsmooth costs, and what it gives."""

import subprocess
import sys

import pytest

import lsmooth


def test_importing_lsmooth_imports_neither_torch_nor_pandas():
    script = (
        "import sys, lsmooth, lsmooth.cli; print(sorted({'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_side_never_imports_torch():
    script = "import sys, lsmooth.trace.reader, lsmooth.figures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", lsmooth.__all__)
def test_every_public_name_resolves(name):
    assert getattr(lsmooth, name) is not None
    assert name in dir(lsmooth)
