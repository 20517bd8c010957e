"""What (L0, L1)-smoothness says about a run: a convergence bound, a descent check, a lower bound for gradient descent.

Statements follow the paper (Crawshaw, Liu, Orabona, Zhang, Zhuang, "Robustness to Unbounded Smoothness of Generalized
SignSGD", NeurIPS 2022) in their setting and their names. Where a number is returned, it is one that is proven here, in
docs/theory.md, with all its constants: the paper states some of its own up to constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lsmooth.errors import InvalidArgumentError, TraceError

if TYPE_CHECKING:
    import pandas as pd

    from lsmooth.trace.reader import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Theorem1:
    """Hyperparameters of generalized SignSGD for a given number of steps, and what they guarantee.

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
    """Return beta1 and lr of generalized SignSGD for T steps, from what T on they are good, and the bound they give.

    Assumed is the setting of the paper's Theorem 1: F is coordinate-wise (L0, L1)-smooth (Assumption 2),

        |d_j F(y) - d_j F(x)| <= (L0_j / √d + L1_j |d_j F(x)|) ‖y - x‖2    for ‖y - x‖2 <= 1 / ‖L1‖inf,

    gradients are unbiased, their j-th coordinate has standard deviation at most sigma_j, F(x_1) - inf F <= delta, and
    eps = 0. Then, with U = 1/√(1 - beta2), W = √(1 - beta2) / (1 - √beta2), K = W √beta2 / (1 - √beta2),
    A = 3/W + U, C = (A/alpha + K/W²) U + U²/2, and lr C √d ‖L1‖inf <= 1/(2W),

        mean_t E‖grad F(x_t)‖1 <= 2W (delta/(lr T) + lr C ‖L0‖1) + 2WA √alpha ‖sigma‖1 + 2WA ‖grad F(x_1)‖1/(alpha T).

    alpha and lr balance these terms; the condition on lr is T >= c for alpha = 1 and T >= c² ‖sigma‖1² / (‖L0‖1
    delta) for alpha < 1, with c = 4W²C1² d delta ‖L1‖inf² / ‖L0‖1 and C1 = C at alpha = 1. docs/theory.md has the
    proof. It is in expectation and has no constants inside O(); the paper's Theorem 1 has the same alpha, lr and form
    of the two conditions, holds with high probability, and has powers of rho and of 1 - beta2 in the place of W, A, C.

    Args:
        L0: L0_j of each coordinate (d,), or one number for all of them; not all 0.
        L1: L1_j, as L0.
        sigma: sigma_j, as L0.
        delta: Upper bound on F(x_1) - inf F, above 0.
        steps: T, at least 1.
        beta2: In [0, 1), with √beta2 < beta1.
        first_gradient: ‖grad F(x_1)‖1, where it is known.
        counts: How many coordinates each entry of L0, L1 and sigma stands for; 1 by default.

    Raises:
        InvalidArgumentError: A value is out of range, or beta2 breaks √beta2 / beta1 < 1.

    Example:
        >>> result = theorem1(L0=[1.0, 2.0], L1=0.1, sigma=1.0, delta=3.0, steps=10_000)
        >>> round(result.beta1, 3), round(result.lr, 5)
        (0.985, 0.00122)
    """
    l0, l1, noise, number = (
        np.atleast_1d(np.asarray(1.0 if values is None else values, dtype=np.float64))
        for values in (L0, L1, sigma, counts)
    )
    try:
        l0, l1, noise, number = np.broadcast_arrays(l0, l1, noise, number)
    except ValueError:
        raise InvalidArgumentError(
            f"L0, L1, sigma and counts must be as long as each other, or single numbers; their shapes are {l0.shape}, "
            f"{l1.shape}, {noise.shape} and {number.shape}."
        ) from None
    for name, values in (("L0", l0), ("L1", l1), ("sigma", noise), ("counts", number)):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise InvalidArgumentError(f"Every entry of {name} must be at least 0 and finite.")
    dimension, l0_sum = float(number.sum()), float((number * l0).sum())
    l1_max, noise_sum = float(l1.max()), float((number * noise).sum())
    if not l0_sum > 0:
        raise InvalidArgumentError("L0 is 0 in every coordinate; lr needs one that is above 0.")
    if not (delta > 0 and math.isfinite(delta)):
        raise InvalidArgumentError(f"delta={delta} must be above 0 and finite.")
    if steps < 1:
        raise InvalidArgumentError(f"steps={steps} must be at least 1.")
    if not 0 <= beta2 < 1:
        raise InvalidArgumentError(f"beta2={beta2} must be at least 0 and below 1.")
    alpha = 1.0 if noise_sum == 0 else min(1.0, math.sqrt(l0_sum * delta / steps) / noise_sum)
    beta1 = 1 - alpha
    root = math.sqrt(beta2)
    if root > 0 and root >= beta1:
        raise InvalidArgumentError(
            f"beta2={beta2:g} breaks √beta2 / beta1 < 1: beta1 is {beta1:g} here, so that beta2 must be below "
            f"{beta1**2:g}."
        )
    rho = 1.0 if root == 0 else 1 - root / beta1
    lr = math.sqrt(delta * alpha / (l0_sum * steps))
    largest = 1 / math.sqrt(1 - beta2)  # U, the largest |m|/√v
    width = math.sqrt(1 - beta2) / (1 - root)  # W
    lag = width * root / (1 - root)  # K
    error = 3 / width + largest  # A
    curvature = (error / alpha + lag / width**2) * largest + largest**2 / 2  # C
    curvature_at_one = (error + lag / width**2) * largest + largest**2 / 2
    noiseless = 4 * width**2 * curvature_at_one**2 * dimension * delta * l1_max**2 / l0_sum
    noisy = noiseless**2 * noise_sum**2 / (l0_sum * delta)
    least = max(1.0, noiseless, noisy)
    terms = {
        "optimization": 2 * width * (delta / (lr * steps) + lr * curvature * l0_sum),
        "noise": 2 * width * error * math.sqrt(alpha) * noise_sum,
    }
    if first_gradient is not None:
        if not first_gradient >= 0:
            raise InvalidArgumentError(f"first_gradient={first_gradient} is a norm, and must be at least 0.")
        terms["start"] = 2 * width * error * first_gradient / (alpha * steps)
    holds = steps >= least
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
class DescentCheck:
    """Lemma 1 along a trace.

    Attributes:
        L0: Constant of the check, in the unit of smoothness.
        L1: Constant of the check, in that of smoothness over gradient norm.
        frame: One row for each usable step: `step`; `slope`, <grad f(x_t), d>; `predicted`, the largest change of the
            loss that Lemma 1 allows; `seen`, f(x_{t+1}) - f(x_t) on the same batch; `reach`, L1 ‖d‖, up to 1 where
            the lemma speaks; `holds`, whether seen <= predicted up to rounding.
        share: Share of the steps within reach where the bound holds; NaN without any.
        within_reach: How many steps that are.
    """

    L0: float
    L1: float
    frame: pd.DataFrame
    share: float
    within_reach: int


def descent_check(
    trace: Trace, *, L0: float | None = None, L1: float | None = None, method: str = "envelope"
) -> DescentCheck:
    """Hold the changes of the loss that a trace has seen against what (L0, L1)-smoothness predicts.

    From ‖grad f(y) - grad f(x)‖ <= (L0 + L1 ‖grad f(x)‖) ‖y - x‖ along the segment from x to y = x + d follows, by
    integrating,

        f(x + d) <= f(x) + <grad f(x), d> + (L0 + L1 ‖grad f(x)‖) ‖d‖² / 2      for ‖d‖ <= 1/L1

    (the global form of the paper's Lemma 1). The slope <grad f(x), d> is read from the trace. Traces of format 1.0
    do not hold it: there it is the derivative at 0 of a polynomial of degree 4 fitted to the losses along the segment,
    and no larger than Σ ‖grad_S f(x)‖ ‖d_S‖ over the parameter tensors S.

    Args:
        trace: An open trace with the endpoint.
        L0: Constant; fitted to the trace by default, as is L1.
        L1: Constant; give both or none.
        method: Line that is fitted, see `lsmooth.fit.estimate`; "envelope" lies above all points.

    Raises:
        InvalidArgumentError: One of L0 and L1 is given without the other, or one is negative.
        TraceError: The trace has no losses at the segments' ends, or too few usable steps to fit.
    """
    import pandas as pd

    if (L0 is None) != (L1 is None):
        raise InvalidArgumentError("L0 and L1 belong together; give both, or none to have them fitted.")
    if not trace.has("loss_next"):
        raise TraceError(f"{trace.path} was recorded without the endpoint; record with endpoint=True.")
    cloud = trace.cloud("global")
    usable = cloud.usable[:, 0]
    if L0 is None or L1 is None:
        L0, L1 = _fitted(trace, method)
    if not (L0 >= 0 and L1 >= 0):
        raise InvalidArgumentError(f"L0={L0} and L1={L1} must be at least 0.")
    grads, moves = (trace.read(name).astype(np.float64) for name in ("grad_norm", "step_norm"))
    seen = trace.read("loss_next") - trace.loss
    fitted = _slopes(trace, (grads * moves).sum(axis=1))
    recorded = trace.read("slope") if trace.has("slope") else np.full(len(trace), np.nan)
    known = ~np.isnan(recorded)
    slope = np.where(known, recorded, fitted)
    moved = np.sqrt((moves**2).sum(axis=1))
    predicted = slope + (L0 + L1 * cloud.grad_norm[:, 0]) * moved**2 / 2
    # Losses are sums in the model's dtype; a fitted slope takes over what rounding does to them, some ten times larger.
    numbers = np.finfo(np.float64 if trace.metadata.get("dtype") == "float64" else np.float32)
    rounding = np.where(known, 4, 32) * float(numbers.eps) * np.abs(trace.loss)
    frame = pd.DataFrame(
        {
            "step": trace.steps,
            "slope": slope,
            "predicted": predicted,
            "seen": seen,
            "reach": L1 * moved,
            "holds": seen <= predicted + rounding,
        }
    )[usable].reset_index(drop=True)
    near = frame["reach"] <= 1
    share = float(frame.loc[near, "holds"].mean()) if near.any() else math.nan
    return DescentCheck(L0=float(L0), L1=float(L1), frame=frame, share=share, within_reach=int(near.sum()))


def _fitted(trace: Trace, method: str) -> tuple[float, float]:
    from lsmooth.fit import estimate

    row = estimate(trace, "global", method=method).iloc[0]
    if math.isnan(row["L0"]):
        raise TraceError(f"L0 and L1 cannot be fitted to {trace.path}: {row['reason']}.")
    return float(row["L0"]), float(row["L1"])


def _slopes(trace: Trace, largest: Floats) -> Floats:
    """Return the derivative of the loss along each segment at its start, (n,), in [-largest, largest]."""
    gammas = np.concatenate([[0.0], trace.gammas, [1.0]])
    losses = np.column_stack([trace.loss, trace.read("loss_along"), trace.read("loss_next")])
    powers = np.arange(1, min(4, len(gammas) - 1) + 1)
    # Differences to f(x_t), so that the polynomial passes through it and large losses keep their small changes.
    weights = np.linalg.pinv(gammas[1:, None] ** powers)[0]
    slopes = (losses[:, 1:] - losses[:, :1]) @ weights
    return np.clip(slopes, -largest, largest)


def gd_lower_bound(L0: float, L1: float, M: float, delta: float, epsilon: float) -> float:
    """Return how many iterations gradient descent needs at least, whatever its constant step, in the worst case.

    The case: one of the functions with |f''| <= L0 + L1 |f'|, f(x_0) - inf f <= delta and |f'| <= M wherever
    f(x) <= f(x_0), and the aim |f'(x)| <= epsilon. For every step eta > 0 there is one that takes at least

        M L1 (delta - epsilon² / (2 L0)) / (2 epsilon² (1 + ln(M L1 / L0)))

    iterations: with eta >= 2 x_0 / M, x_0 = (1 + ln(M L1 / L0)) / L1, `steep` leads away from its minimum, since
    eta f'(x) >= 2x from x_0 on; and with eta < 2 x_0 / M, `flat` with slope s > epsilon has a distance of delta/s +
    s/(2 L0) - epsilon/L0 to be walked in steps of eta s; let s fall to epsilon. In the manner of Theorem 2 of the
    paper and of Zhang, He, Sra, Jadbabaie 2020, Theorem 4; this form and its constants are those of the argument above.

    Args:
        L0: Above 0.
        L1: Above 0.
        M: Largest gradient, at least L0/L1 and above epsilon.
        delta: Largest f(x_0) - inf f, at least that of `steep`, M/L1 - L0/(2 L1²).
        epsilon: Gradient that is small enough, above 0.

    Raises:
        InvalidArgumentError: An argument is out of range.

    Example:
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
    """See `gd_lower_bound` happen: iterations of gradient descent and of generalized SignSGD as M grows.

    For each M, both start from slope M on `steep` and from height delta on `flat` with slope just above epsilon, and
    run until |f'| <= epsilon; what counts is the larger number. Gradient descent uses its best constant step for that
    M, out of a grid around the limit 2 x_0 / M; generalized SignSGD (Algorithm 1, eps = 0) uses lr = epsilon/L0 for
    all of them, with which it cannot leap over the points that it looks for.

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
    height = float(sizes.max() / L1) if delta is None else delta
    bounds = np.array([gd_lower_bound(L0, L1, float(M), height, epsilon) for M in sizes])
    slope = epsilon * (1 + 1e-6)
    starts = np.stack(
        [(1 + np.log(sizes * L1 / L0)) / L1, np.full_like(sizes, height / slope + slope / (2 * L0))], axis=-1
    )
    limits = 2 * starts[:, 0] / sizes
    fractions = np.array([0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0, 1.2])
    rates = limits[:, None] * fractions
    most = int(2 * bounds.max()) + 100

    def gradients(x: Floats) -> Floats:
        return np.stack([steep(x[..., 0], L0, L1)[1], flat(x[..., 1], slope, L0)[1]], axis=-1)

    # (M, step, function)
    x = np.broadcast_to(starts[:, None, :], (*rates.shape, 2)).copy()
    counts = _iterations(x, gradients, epsilon, lambda g: rates[..., None] * g, most).max(axis=-1)
    best = counts.argmin(axis=1)
    rows = np.arange(len(sizes))
    rate = epsilon / L0
    signs = _iterations(starts.copy(), gradients, epsilon, _Algorithm1(rate, betas), most).max(axis=-1)
    return pd.DataFrame(
        {
            "M": np.repeat(sizes, 2),
            "M_L1": np.repeat(sizes * L1, 2),
            "optimizer": ["gradient descent", "generalized SignSGD"] * len(sizes),
            "lr": np.stack([rates[rows, best], np.full(len(sizes), rate)], axis=1).ravel(),
            "iterations": np.stack([counts[rows, best], signs], axis=1).ravel(),
            "bound": np.repeat(bounds, 2),
        }
    )


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


def _iterations(
    x: Floats, gradients: Callable[[Floats], Floats], epsilon: float, step: Callable[[Floats], Floats], most: int
) -> Floats:
    """Return after how many steps each of many runs first has |f'| <= epsilon; infinite where not within `most`."""
    counts = np.full(x.shape, np.inf)
    for iteration in range(most + 1):
        gradient = gradients(x)
        arrived = np.isinf(counts) & (np.abs(gradient) <= epsilon)
        counts[arrived] = iteration
        # What has arrived stays, and what has fled to infinity is not followed.
        going = np.isinf(counts) & (np.abs(x) < 1e6)
        if not going.any():
            break
        x = np.where(going, x - step(np.where(going, gradient, 0.0)), x)
    return counts
