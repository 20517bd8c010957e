"""From a cloud of points to L0 and L1: lines, their uncertainty, and which condition describes a run."""

from lsmooth.fit.groups import estimate
from lsmooth.fit.lines import envelope, quantile, trend

__all__ = ["envelope", "estimate", "quantile", "trend"]
