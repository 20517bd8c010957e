"""A lower bound on the iterations of gradient descent, and an experiment that illustrates it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lsmooth.errors import InvalidArgumentError

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]


def gd_lower_bound(L0: float, L1: float, M: float, delta: float, epsilon: float) -> float:
    """Return a lower bound of the iterations of gradient descent in the worst case, at its best constant step.

    The functions have |f''| <= L0 + L1 |f'|, f(x_0) - inf f <= delta, and |f'| <= M wherever f(x) <= f(x_0). The aim
    is |f'(x)| <= epsilon. For every step eta > 0 there is one of these functions that takes at least

        M L1 (delta - epsilon² / (2 L0)) / (2 epsilon² (1 + ln(M L1 / L0)))

    iterations. Let x_0 = (1 + ln(M L1 / L0)) / L1. With eta >= 2 x_0 / M, `steep` leads away from its minimum, since
    eta f'(x) >= 2x from x_0 on. With eta < 2 x_0 / M, `flat` with slope s > epsilon has a distance of delta/s +
    s/(2 L0) - epsilon/L0, to be walked in steps of eta s; let s fall to epsilon.

    Source: The argument above, in the manner of Theorem 2 of the paper and of Zhang, He, Sra, Jadbabaie 2020,
    Theorem 4.

    Args:
        L0: Above 0.
        L1: Above 0.
        M: Largest gradient, at least L0/L1 and above epsilon.
        delta: Largest f(x_0) - inf f, at least that of `steep`, M/L1 - L0/(2 L1²).
        epsilon: Gradient that is small enough, above 0.

    Raises:
        InvalidArgumentError: An argument is out of range.

    Examples:
        >>> round(gd_lower_bound(L0=1.0, L1=1.0, M=100.0, delta=100.0, epsilon=0.1))
        89199
    """
    _check_class(L0, L1, M, delta, epsilon)
    gap = delta - epsilon**2 / (2 * L0)
    return M * L1 * gap / (2 * epsilon**2 * (1 + math.log(M * L1 / L0)))


def _check_class(L0: float, L1: float, M: float, delta: float, epsilon: float) -> None:
    for name, value in (("L0", L0), ("L1", L1), ("M", M), ("delta", delta), ("epsilon", epsilon)):
        if not (value > 0 and math.isfinite(value)):
            raise InvalidArgumentError(f"{name}={value} must be above 0 and finite.")
    if not (M >= L0 / L1 and epsilon < M):
        raise InvalidArgumentError(f"M={M:g} must be at least L0/L1 = {L0 / L1:g} and above epsilon = {epsilon:g}.")
    least = M / L1 - L0 / (2 * L1**2)
    if delta < least:
        raise InvalidArgumentError(
            f"delta={delta:g} must be at least {least:g}: a function of this class that has slope M = {M:g} somewhere "
            "lies that much above its minimum there."
        )


def steep(x: ArrayLike, L0: float = 1.0, L1: float = 1.0) -> tuple[Floats, Floats]:
    """Return values and derivatives of a function whose tails grow as exponentials.

        f'(x) = L0 x for |x| <= 1/L1,   sign(x) (L0/L1) exp(L1 |x| - 1) beyond,   f(0) = 0

    f'' is continuous and |f''| = max(L0, L1 |f'|) <= L0 + L1 |f'|: (L0, L1)-smooth, and not L-smooth for any L.
    """
    x = np.asarray(x, dtype=np.float64)
    far = np.abs(x) * L1 > 1
    with np.errstate(over="ignore"):
        tail = L0 / L1 * np.exp(np.where(far, np.abs(x) * L1 - 1, 0.0))
    value = np.where(far, (tail - L0 / L1) / L1 + L0 / (2 * L1**2), L0 * x**2 / 2)
    return value, np.where(far, np.sign(x) * tail, L0 * x)


def flat(x: ArrayLike, slope: float, L0: float = 1.0) -> tuple[Floats, Floats]:
    """Return values and derivatives of a function that is a parabola within two flat tails (Huber's).

    f'(x) = clip(L0 x, -slope, slope), f(0) = 0; |f''| <= L0.
    """
    x = np.asarray(x, dtype=np.float64)
    far = np.abs(x) > slope / L0
    return np.where(far, slope * (np.abs(x) - slope / (2 * L0)), L0 * x**2 / 2), np.clip(L0 * x, -slope, slope)


def lower_bound_experiment(
    largest_gradients: Sequence[float] = (4, 8, 16, 32, 64, 128, 256),
    *,
    L0: float = 1.0,
    L1: float = 1.0,
    epsilon: float = 0.5,
    delta: float | None = None,
    betas: tuple[float, float] = (0.9, 0.5),
) -> pd.DataFrame:
    """Count the iterations of gradient descent and of generalized SignSGD as M grows, with `gd_lower_bound`.

    For each M, both start from slope M on `steep`, and from height delta on `flat` with slope just above epsilon. They
    run until |f'| <= epsilon, and the larger number counts. Gradient descent uses its best constant step for that M,
    out of a grid around the limit 2 x_0 / M. Generalized SignSGD (Algorithm 1, eps = 0) uses lr = epsilon/L0 for
    every M, with which it cannot leap over the points that it looks for.

    Args:
        largest_gradients: The values of M, each at least L0/L1 and above epsilon.
        L0: Constant of both functions.
        L1: Constant of `steep`.
        epsilon: Gradient that is small enough.
        delta: Height of the start on `flat`; that of `steep` at the largest M by default, so that every M has the
            same.
        betas: beta1 and beta2 of generalized SignSGD.

    Returns:
        One row for each M and optimizer: `M`, `M_L1` (their product), `optimizer` ("gradient descent" or "generalized
        SignSGD"), `lr`, `iterations`, `bound` (`gd_lower_bound`).

    Raises:
        InvalidArgumentError: An argument is out of range.
    """
    import pandas as pd

    sizes = np.asarray(largest_gradients, dtype=np.float64)
    if sizes.ndim != 1 or not len(sizes):
        raise InvalidArgumentError("largest_gradients must be a list of numbers, at least one.")
    height = delta if delta is not None else float(sizes.max() / L1)
    bounds = np.array([gd_lower_bound(L0, L1, float(M), height, epsilon) for M in sizes])
    slope = epsilon * (1 + 1e-6)
    on_steep, on_flat = (1 + np.log(sizes * L1 / L0)) / L1, np.full_like(sizes, height / slope + slope / (2 * L0))
    starts = np.stack([on_steep, on_flat], axis=-1)

    def gradients(x: Floats) -> Floats:
        return np.stack([steep(x[..., 0], L0, L1)[1], flat(x[..., 1], slope, L0)[1]], axis=-1)

    run = _Run(gradients, epsilon, most=int(2 * bounds.max()) + 100)
    best_rates, fewest = _best_of_gradient_descent(run, starts, 2 * on_steep / sizes)
    rate = np.full_like(sizes, epsilon / L0)
    signs = run.iterations(starts, _Algorithm1(epsilon / L0, betas)).max(axis=-1)
    return pd.DataFrame(
        {
            "M": np.repeat(sizes, 2),
            "M_L1": np.repeat(sizes * L1, 2),
            "optimizer": ["gradient descent", "generalized SignSGD"] * len(sizes),
            "lr": np.stack([best_rates, rate], axis=1).ravel(),
            "iterations": np.stack([fewest, signs], axis=1).ravel(),
            "bound": np.repeat(bounds, 2),
        }
    )


def _best_of_gradient_descent(run: _Run, starts: Floats, limits: Floats) -> tuple[Floats, Floats]:
    """Return for each M the best step out of a grid around its limit, and the iterations with it, both (M,)."""
    fractions = np.array([0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0, 1.2])
    rates = limits[:, None] * fractions
    # (M, step, function)
    x = np.broadcast_to(starts[:, None, :], (*rates.shape, 2)).copy()
    counts = run.iterations(x, lambda g: rates[..., None] * g).max(axis=-1)
    best = counts.argmin(axis=1)
    rows = np.arange(len(limits))
    return rates[rows, best], counts[rows, best]


class _Algorithm1:
    """Steps of generalized SignSGD with eps = 0, for many starts at once."""

    def __init__(self, lr: float, betas: tuple[float, float]) -> None:
        self.lr = lr
        self.betas = betas
        self.m: Floats | float = 0.0
        self.v: Floats | float = 0.0

    def __call__(self, gradient: Floats) -> Floats:
        beta1, beta2 = self.betas
        m = self.m = beta1 * self.m + (1 - beta1) * gradient
        v = self.v = beta2 * self.v + (1 - beta2) * m**2
        return self.lr * np.divide(m, np.sqrt(v), out=np.zeros_like(m), where=v > 0)


@dataclass(frozen=True)
class _Run:
    """What the runs of the experiment share: gradients, the gradient that is small enough, and the most steps."""

    gradients: Callable[[Floats], Floats]
    epsilon: float
    most: int

    def iterations(self, x: Floats, step: Callable[[Floats], Floats]) -> Floats:
        """Return the step at which each of many runs first has |f'| <= epsilon; infinite where not within `most`."""
        counts = np.full(x.shape, np.inf)
        for iteration in range(self.most + 1):
            gradient = self.gradients(x)
            arrived = np.isinf(counts) & (np.abs(gradient) <= self.epsilon)
            counts[arrived] = iteration
            # Runs that have arrived stay. Runs that fled to infinity are not followed.
            going = np.isinf(counts) & (np.abs(x) < 1e6)
            if not going.any():
                break
            x = np.where(going, x - step(np.where(going, gradient, 0.0)), x)
        return counts
