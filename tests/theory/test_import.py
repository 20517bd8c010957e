"""What importing lsmooth.theory costs and offers."""

import subprocess
import sys

import lsmooth.theory


def test_theory_does_not_import_torch():
    script = "import sys, lsmooth.theory as t; t.lower_bound_experiment((2, 4)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_at_hand_without_their_modules():
    for name in lsmooth.theory.__all__:
        assert callable(getattr(lsmooth.theory, name))
