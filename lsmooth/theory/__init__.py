"""Theorems on (L0, L1)-smoothness: a convergence bound, a descent check, and a lower bound for gradient descent.

Statements follow the paper (Crawshaw, Liu, Orabona, Zhang, Zhuang, "Robustness to Unbounded Smoothness of Generalized
SignSGD", NeurIPS 2022) in their setting and their names. Every number that is returned is proven in docs/theory.md,
with all its constants. The paper states some of its own up to constants.
"""

from lsmooth.theory.descent import DescentCheck, descent_check
from lsmooth.theory.descent import Floats as Floats
from lsmooth.theory.lower_bound import flat, gd_lower_bound, lower_bound_experiment, steep
from lsmooth.theory.theorem1 import Theorem1, theorem1

__all__ = [
    "DescentCheck",
    "Theorem1",
    "descent_check",
    "flat",
    "gd_lower_bound",
    "lower_bound_experiment",
    "steep",
    "theorem1",
]
