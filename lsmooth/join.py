"""How values of parts make the value of the whole: one answer for ranks, and for tensors of a group."""

from __future__ import annotations

from enum import Enum


class Join(str, Enum):
    """How the parts' values of a quantity make the value of the whole.

    Parts are the tensors of a group, or the ranks' shards of a tensor; for losses, the batches of the ranks.
    """

    NORM = "l2"  # the root of the sum of squares: 2-norms
    SUM = "sum"  # inner products, 1-norms, nuclear norms
    MAX = "max"  # largest entries, spectral norms
    MEAN = "mean"  # losses
    SAME = "same"  # each part has the whole
    UNKNOWN = "unknown"  # parts do not tell the whole: shards of a matrix, its singular values
