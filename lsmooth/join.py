"""How values of parts are joined to the value of the whole, for ranks and for tensors of a group."""

from __future__ import annotations

from enum import Enum


class Join(str, Enum):
    """How the values of parts are joined to the value of the whole.

    Parts are the tensors of a group, the ranks' shards of a tensor, or for losses the ranks' batches.
    """

    NORM = "l2"  # square root of the sum of squares: 2-norms
    SUM = "sum"  # inner products, 1-norms, nuclear norms
    MAX = "max"  # largest entries, spectral norms
    MEAN = "mean"  # losses
    SAME = "same"  # every part has the value of the whole
    UNKNOWN = "unknown"  # not determined by the parts: singular values of a sharded matrix
