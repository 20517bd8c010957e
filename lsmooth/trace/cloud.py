"""A cloud of points: local Lipschitz constants against gradient norms, ready to be fitted and drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.trace.layout import Status


@dataclass(frozen=True)
class Cloud:
    """Local Lipschitz constants of the gradient and the gradient norms they are held against.

    Attributes:
        by: How parameters were grouped: "global", "module", "parameter", "coordinate", or "mapping" or "regex".
        groups: Names of the m groups, in the network's order.
        steps: Optimizer step index of each of the n measured steps, int64 (n,).
        smoothness: Local Lipschitz constant of each step and group, float64 (n, m); NaN where there is none (a
            group that did not move at that step).
        grad_norm: Gradient norm of each step and group, float64 (n, m); for coordinates, the smaller of the two
            ends' absolute values (the paper, Section 5.2).
        status: Bit flags of each step (`lsmooth.trace.layout.Status`), uint8 (n,).
        loss: f(x_t) of each step, float64 (n,).
        lr: Learning rate of the first parameter group at each step, float64 (n,).
        norm: The geometry: displacements in this norm, gradients and their changes in its dual.
    """

    by: str
    groups: tuple[str, ...]
    steps: NDArray[np.int64]
    smoothness: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    status: NDArray[np.uint8]
    loss: NDArray[np.float64]
    lr: NDArray[np.float64]
    norm: str = "l2"

    @property
    def measured_well(self) -> NDArray[np.bool_]:
        """Which steps were measured without reservation, bool (n,)."""
        return self.status == Status.MEASURED

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which points enter fits, bool (n, m): measured well, and finite."""
        return self.measured_well[:, None] & np.isfinite(self.smoothness) & np.isfinite(self.grad_norm)

    def to_frame(self) -> pd.DataFrame:
        """Return the points as a long DataFrame: step, group, smoothness, grad_norm, loss, lr, usable."""
        n, m = self.smoothness.shape
        codes = np.tile(np.arange(m), n)
        return pd.DataFrame(
            {
                "step": np.repeat(self.steps, m),
                "group": pd.Categorical.from_codes(codes, categories=list(self.groups)),
                "smoothness": self.smoothness.ravel(),
                "grad_norm": self.grad_norm.ravel(),
                "loss": np.repeat(self.loss, m),
                "lr": np.repeat(self.lr, m),
                "usable": self.usable.ravel(),
            }
        )
