"""From a cloud of points to L0 and L1: lines, their uncertainty, and which condition describes a run."""

from lsmooth.fit.conditions import verdict
from lsmooth.fit.groups import compare, estimate
from lsmooth.fit.lines import envelope, quantile, trend

__all__ = ["compare", "envelope", "estimate", "quantile", "trend", "verdict"]
