"""A cloud of points, local Lipschitz constants against gradient norms, to be fitted and drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.trace.layout import NOISE_SHARE, Status


@dataclass(frozen=True)
class Cloud:
    """Local Lipschitz constants of the gradient, and the gradient norms that they are compared with.

    Attributes:
        by: How parameters were grouped: "global", "module", "parameter", "coordinate", or "mapping" or "regex".
        groups: Names of the m groups, in the network's order.
        steps: Optimizer step index of each of the n measured steps, int64 (n,).
        smoothness: Local Lipschitz constant of each step and group, float64 (n, m); NaN for a group that did not move
            at that step.
        grad_norm: Gradient norm of each step and group, float64 (n, m); for coordinates, the smaller of the two
            ends' absolute values (the paper, Section 5.2).
        status: Bit flags of each step (`lsmooth.trace.layout.Status`), uint16 (n,).
        loss: f(x_t) of each step, float64 (n,).
        lr: Learning rate of the first parameter group at each step, float64 (n,).
        norm: The geometry: displacements in this norm, gradients and their changes in its dual.
        noise_share: 2-norm of the rounding in the change of gradient, as a share of that change, float64 (n, m); NaN
            where unknown. Coordinates have the share of their tensor. None if the trace does not tell.
    """

    by: str
    groups: tuple[str, ...]
    steps: NDArray[np.int64]
    smoothness: NDArray[np.float64]
    grad_norm: NDArray[np.float64]
    status: NDArray[np.integer]
    loss: NDArray[np.float64]
    lr: NDArray[np.float64]
    norm: str = "l2"
    noise_share: NDArray[np.float64] | None = None

    @property
    def measured_well(self) -> NDArray[np.bool_]:
        """Whether each step was measured well, bool (n,)."""
        return self.status == Status.MEASURED

    @property
    def noisy(self) -> NDArray[np.bool_]:
        """Whether rounding spoils each estimate, being more than 30 % of the change of gradient, bool (n, m)."""
        # False for NaN too.
        return np.zeros(self.smoothness.shape, bool) if self.noise_share is None else self.noise_share > NOISE_SHARE

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Whether each point enters fits: measured well, finite and not noisy, bool (n, m)."""
        finite = np.isfinite(self.smoothness) & np.isfinite(self.grad_norm)
        return self.measured_well[:, None] & finite & ~self.noisy

    def to_frame(self) -> pd.DataFrame:
        """Return the points as a long DataFrame: step, group, and columns named after the attributes."""
        n, m = self.smoothness.shape
        shares = np.full((n, m), np.nan) if self.noise_share is None else self.noise_share
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
                "noisy": self.noisy.ravel(),
                "noise_share": shares.ravel(),
            }
        )
