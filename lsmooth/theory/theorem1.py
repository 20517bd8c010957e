"""Convergence of generalized SignSGD: its hyperparameters for a number of steps, and the bound that they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lsmooth.errors import InvalidArgumentError


@dataclass(frozen=True)
class Theorem1:
    """Hyperparameters of generalized SignSGD for a given number of steps, and what they guarantee.

    Assumed is the setting of the paper's Theorem 1: F is coordinate-wise (L0, L1)-smooth (Assumption 2),

        |d_j F(y) - d_j F(x)| <= (L0_j / √d + L1_j |d_j F(x)|) ‖y - x‖2    for ‖y - x‖2 <= 1 / ‖L1‖inf,

    gradients are unbiased, their j-th coordinate has standard deviation at most sigma_j, F(x_1) - inf F <= delta, and
    eps = 0. Then, with U = 1/√(1 - beta2), W = √(1 - beta2) / (1 - √beta2), K = W √beta2 / (1 - √beta2),
    A = 3/W + U, C = (A/alpha + K/W²) U + U²/2, and lr C √d ‖L1‖inf <= 1/(2W),

        mean_t E‖grad F(x_t)‖1 <= 2W (delta/(lr T) + lr C ‖L0‖1) + 2WA √alpha ‖sigma‖1 + 2WA ‖grad F(x_1)‖1/(alpha T).

    alpha and lr balance these terms. The condition on lr is T >= c for alpha = 1, and T >= c² ‖sigma‖1² / (‖L0‖1
    delta) for alpha < 1, with c = 4W²C1² d delta ‖L1‖inf² / ‖L0‖1 and C1 = C at alpha = 1. docs/theory.md has the
    proof. The bound is in expectation and has no constants inside O(). The paper's Theorem 1 has the same alpha, lr
    and form of the two conditions. It holds with high probability, and has powers of rho and of 1 - beta2 in the place
    of W, A, C.

    Attributes:
        alpha: min(1, √(‖L0‖1 delta) / (‖sigma‖1 √T)).
        beta1: 1 - alpha.
        beta2: As given.
        rho: 1 - √beta2 / beta1.
        lr: √(delta alpha / (‖L0‖1 T)).
        steps: T, as given.
        least_steps: The least T from which on the guarantee holds, by the two conditions below.
        least_steps_without_noise: The condition that alpha = 1 leads to.
        least_steps_with_noise: The condition that alpha < 1 leads to.
        binding: Which of the two is the larger one: "noiseless" or "noise".
        holds: Whether T is at least `least_steps`.
        terms: The parts of the bound on the mean over t of E‖grad F(x_t)‖1, in units of the gradient: "optimization"
            (falls as 1/√(alpha T)), "noise" (falls as T^(-1/4)), "start" (falls as 1/(alpha T); only where ‖grad
            F(x_1)‖1 is known).
        bound: Their sum; NaN where the start is not known, infinite where the guarantee does not hold.
    """

    alpha: float
    beta1: float
    beta2: float
    rho: float
    lr: float
    steps: int
    least_steps: float
    least_steps_without_noise: float
    least_steps_with_noise: float
    binding: Literal["noiseless", "noise"]
    holds: bool
    terms: dict[str, float]
    bound: float


def theorem1(
    L0: ArrayLike,
    L1: ArrayLike,
    sigma: ArrayLike,
    delta: float,
    steps: int,
    beta2: float = 0.0,
    *,
    first_gradient: float | None = None,
    counts: ArrayLike | None = None,
) -> Theorem1:
    """Return beta1 and lr of generalized SignSGD for T steps, the T from which they are good, and their bound.

    `Theorem1` has the statement and its assumptions.

    Args:
        L0: L0_j of each coordinate (d,), or one number for all of them; not all 0.
        L1: L1_j, as L0.
        sigma: sigma_j, as L0.
        delta: Upper bound on F(x_1) - inf F, above 0.
        steps: T, at least 1.
        beta2: In [0, 1), with √beta2 < beta1.
        first_gradient: ‖grad F(x_1)‖1, where it is known.
        counts: Number of coordinates that each entry of L0, L1 and sigma stands for; 1 by default.

    Raises:
        InvalidArgumentError: A value is out of range, or beta2 breaks √beta2 / beta1 < 1.

    Examples:
        >>> result = theorem1(L0=[1.0, 2.0], L1=0.1, sigma=1.0, delta=3.0, steps=10_000)
        >>> round(result.beta1, 3), round(result.lr, 5)
        (0.985, 0.00122)
    """
    function = _Function.of(L0, L1, sigma, counts)
    _check_numbers(delta, steps, beta2, first_gradient)
    alpha = 1.0 if function.sigma == 0 else min(1.0, math.sqrt(function.l0 * delta / steps) / function.sigma)
    beta1 = 1 - alpha
    rho = _rho(beta1, beta2)
    lr = math.sqrt(delta * alpha / (function.l0 * steps))
    noiseless, noisy = _least_steps(function, delta, beta2)
    least = max(1.0, noiseless, noisy)
    holds = steps >= least
    terms = _terms(function, delta, steps, beta2, alpha, lr, first_gradient)
    return Theorem1(
        alpha=alpha,
        beta1=beta1,
        beta2=beta2,
        rho=rho,
        lr=lr,
        steps=steps,
        least_steps=least,
        least_steps_without_noise=noiseless,
        least_steps_with_noise=noisy,
        binding="noise" if noisy > noiseless else "noiseless",
        holds=holds,
        terms=terms,
        bound=math.inf if not holds else sum(terms.values()) if "start" in terms else math.nan,
    )


@dataclass(frozen=True)
class _Function:
    """What the theorem needs to know of F and its gradients: d, ‖L0‖1, ‖L1‖inf and ‖sigma‖1."""

    dimension: float
    l0: float
    l1: float
    sigma: float

    @classmethod
    def of(cls, L0: ArrayLike, L1: ArrayLike, sigma: ArrayLike, counts: ArrayLike | None) -> _Function:
        given = {"L0": L0, "L1": L1, "sigma": sigma, "counts": 1.0 if counts is None else counts}
        arrays = [np.atleast_1d(np.asarray(values, dtype=np.float64)) for values in given.values()]
        try:
            arrays = list(np.broadcast_arrays(*arrays))
        except ValueError:
            shapes = [array.shape for array in arrays]
            raise InvalidArgumentError(
                "L0, L1, sigma and counts must be as long as each other, or single numbers; their shapes are "
                f"{shapes[0]}, {shapes[1]}, {shapes[2]} and {shapes[3]}."
            ) from None
        for name, values in zip(given, arrays, strict=True):
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise InvalidArgumentError(f"Every entry of {name} must be at least 0 and finite.")
        l0, l1, noise, number = arrays
        total = float((number * l0).sum())
        if not total > 0:
            raise InvalidArgumentError("L0 is 0 in every coordinate; lr needs one that is above 0.")
        return cls(float(number.sum()), total, float(l1.max()), float((number * noise).sum()))


def _check_numbers(delta: float, steps: int, beta2: float, first_gradient: float | None) -> None:
    if not (delta > 0 and math.isfinite(delta)):
        raise InvalidArgumentError(f"delta={delta} must be above 0 and finite.")
    if steps < 1:
        raise InvalidArgumentError(f"steps={steps} must be at least 1.")
    if not 0 <= beta2 < 1:
        raise InvalidArgumentError(f"beta2={beta2} must be at least 0 and below 1.")
    if first_gradient is not None and not first_gradient >= 0:
        raise InvalidArgumentError(f"first_gradient={first_gradient} is a norm, and must be at least 0.")


def _rho(beta1: float, beta2: float) -> float:
    """Return 1 - √beta2 / beta1, which must be above 0."""
    root = math.sqrt(beta2)
    if root > 0 and root >= beta1:
        raise InvalidArgumentError(
            f"beta2={beta2:g} breaks √beta2 / beta1 < 1: beta1 is {beta1:g} here, so that beta2 must be below "
            f"{beta1**2:g}."
        )
    return 1.0 if root == 0 else 1 - root / beta1


def _width(beta2: float) -> float:
    """Return W = √(1 - beta2) / (1 - √beta2)."""
    return math.sqrt(1 - beta2) / (1 - math.sqrt(beta2))


def _error(beta2: float) -> float:
    """Return A = 3/W + U, where U = 1/√(1 - beta2) is the largest |m|/√v."""
    return 3 / _width(beta2) + 1 / math.sqrt(1 - beta2)


def _curvature(beta2: float, alpha: float) -> float:
    """Return C = (A/alpha + K/W²) U + U²/2, where K = W √beta2 / (1 - √beta2)."""
    root, width = math.sqrt(beta2), _width(beta2)
    largest = 1 / math.sqrt(1 - beta2)
    lag = width * root / (1 - root)
    return (_error(beta2) / alpha + lag / width**2) * largest + largest**2 / 2


def _least_steps(function: _Function, delta: float, beta2: float) -> tuple[float, float]:
    """Return the least T of the two conditions: that of alpha = 1, and that of alpha < 1."""
    width, curvature = _width(beta2), _curvature(beta2, alpha=1.0)
    noiseless = 4 * width**2 * curvature**2 * function.dimension * delta * function.l1**2 / function.l0
    return noiseless, noiseless**2 * function.sigma**2 / (function.l0 * delta)


def _terms(
    function: _Function,
    delta: float,
    steps: int,
    beta2: float,
    alpha: float,
    lr: float,
    first_gradient: float | None,
) -> dict[str, float]:
    """Return the parts of the bound, by name."""
    width, error = _width(beta2), _error(beta2)
    terms = {
        "optimization": 2 * width * (delta / (lr * steps) + lr * _curvature(beta2, alpha) * function.l0),
        "noise": 2 * width * error * math.sqrt(alpha) * function.sigma,
    }
    if first_gradient is not None:
        terms["start"] = 2 * width * error * first_gradient / (alpha * steps)
    return terms
