"""Clouds whose constants are known, as like a training run's as needed: for the coverage of intervals.

Gradient norms fall over time and are correlated; smoothness is (L0 + L1 x) times noise, so that its spread grows with
its level. `python tests/known_clouds.py trend` prints how trends do, `intervals` how often intervals hold the
truth, `verdict` which condition is named how often.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.linalg import toeplitz
from scipy.signal import lfilter
from scipy.stats import norm

from lsmooth import fit
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.layout import Status

L0, L1 = 1.0, 2.0
SEEDS = (0, 1, 2)  # whose trials are pooled
PARETO = 3.0  # tail exponent: the third moment is infinite
SHORTEST = 0.25  # of noise that is heavy-tailed up to a bound

# Noise as a function of a uniform number, for averages (with mean 1) and with bound 1.
UNBOUNDED = {
    "lognormal": lambda u: np.exp(0.5 * norm.ppf(u) - 0.125),
    "like runs": lambda u: np.exp(0.65 * norm.ppf(u) - 0.65**2 / 2),
    "pareto": lambda u: (1 - u) ** (-1 / PARETO) * (PARETO - 1) / PARETO,
}
BOUNDED = {
    "triangular": np.sqrt,
    "pareto": lambda u: SHORTEST * (1 - u * (1 - SHORTEST**PARETO)) ** (-1 / PARETO),
}
# What a kind of cloud is called: shape of its noise, correlation of neighbouring steps.
_KINDS = {"heteroscedastic": ("lognormal", 0), "heavy-tailed": ("pareto", 0), "correlated": ("lognormal", 0.7)}
KINDS = {
    "trend": {"proportional": ("like runs", 0), "heavy-tailed": ("pareto", 0), "correlated": ("like runs", 0.7)},
    "least-squares": _KINDS,
    "quantile": _KINDS,
    "envelope": {
        "heteroscedastic": ("triangular", 0),
        "heavy-tailed": ("pareto", 0),
        "correlated": ("triangular", 0.7),
    },
}


def correlated_normals(generator, steps, groups, correlation):
    """Return standard normal numbers, each step's correlated with the one before."""
    fresh = generator.normal(size=(steps + 200, groups)) * np.sqrt(1 - correlation**2)
    return lfilter([1], [1, -correlation], fresh, axis=0)[200:]


def known_cloud(method, kind, trials, steps, seed=0, q=0.95, constants=(L0, L1), fall=0.7, bend=1.0):
    """Return a cloud with one group a trial, and the constants that `method` is to find in each.

    Gradient norms fall over the run by a factor of exp(2 fall), but for their noise; smoothness is L0 + L1 x^bend.
    """
    shape, correlation = KINDS[method][kind]
    generator = np.random.default_rng([seed, steps, list(KINDS[method]).index(kind)])
    falling = fall * (1 - 2 * np.arange(steps)[:, None] / steps)
    x = np.exp(falling + 0.5 * correlated_normals(generator, steps, trials, 0.9))
    uniform = norm.cdf(correlated_normals(generator, steps, trials, correlation))
    noise = (BOUNDED if method == "envelope" else UNBOUNDED)[shape]
    factor = {"quantile": lambda: noise(q), "trend": lambda: middle(shape)}.get(method, lambda: 1.0)()
    cloud = Cloud(
        by="module",
        groups=tuple(f"trial {i}" for i in range(trials)),
        steps=np.arange(steps),
        smoothness=(constants[0] + constants[1] * x**bend) * noise(uniform),
        grad_norm=x,
        status=np.full(steps, int(Status.MEASURED), dtype=np.uint8),
        loss=np.linspace(3, 1, steps),
        lr=np.full(steps, 0.1),
    )
    return cloud, (factor * constants[0], factor * constants[1])


@functools.cache
def middle(shape):
    """Return what noise of a shape multiplies the middle by: Huber's location of its logarithm."""
    noise = np.log(UNBOUNDED[shape]((np.arange(100_000) + 0.5) / 100_000))
    squared = noise.std() ** 2
    centre = noise.mean()
    for _ in range(200):
        residual = noise - centre
        squared = np.minimum(residual**2, squared).mean() / 0.5160585509617133
        centre += np.clip(residual, -np.sqrt(squared), np.sqrt(squared)).mean()
    return float(np.exp(centre))


def trend_quality(kind, trials, steps, *, constants=(0.05, 1.0), fall=1.5, seeds=(0,)):
    """Return how trends do on clouds as wide as a training run's (gradients fall by a factor of 20 and vary by more).

    Returns the share of points below the line (mean, lowest and highest of the trials), the root mean squared relative
    error of the line over the run's range, the same of least squares, and how often the intervals hold L0 and L1.
    """
    below, errors, held = [], {"trend": [], "least-squares": []}, np.zeros(2)
    for seed in seeds:
        cloud, truth = known_cloud("trend", kind, trials, steps, seed, constants=constants, fall=fall)
        frame = fit.estimate(cloud, method=tuple(errors), confidence=None)
        # The mean is 1 times the line for least squares.
        for method, target in (("trend", truth), ("least-squares", constants)):
            rows = frame[frame.method == method]
            along = np.geomspace(cloud.grad_norm.min(axis=0), cloud.grad_norm.max(axis=0), 50)
            line = rows.L0.to_numpy() + rows.L1.to_numpy() * along
            errors[method].append((line / (target[0] + target[1] * along) - 1) ** 2)
        trends = fit.estimate(cloud, method="trend")
        below.extend(trends.coverage)
        for constant, (name, value) in enumerate(zip(("L0", "L1"), truth, strict=True)):
            held[constant] += ((trends[f"{name}_low"] <= value) & (value <= trends[f"{name}_high"])).sum()
    trend, squares = (float(np.sqrt(np.mean(errors[method]))) for method in errors)
    return (float(np.mean(below)), min(below), max(below)), trend, squares, (held / (trials * len(seeds))).tolist()


def coverage(method, kind, trials, steps, confidence=0.9, seeds=(0,)):
    """Return the shares of intervals that hold L0 and L1, and the share of trials with an interval, seeds pooled."""
    held, given = np.zeros(2), 0
    for seed in seeds:
        cloud, truth = known_cloud(method, kind, trials, steps, seed)
        frame = fit.estimate(cloud, method=method, confidence=confidence)
        frame = frame[frame.L0_low.notna()]
        given += len(frame)
        for constant, (name, value) in enumerate(zip(("L0", "L1"), truth, strict=True)):
            held[constant] += ((frame[f"{name}_low"] <= value) & (value <= frame[f"{name}_high"])).sum()
    return *(held / given).tolist(), given / (trials * len(seeds))


# Clouds of all shapes: how smoothness follows from gradient norms and noise.
SHAPES = {
    "both": lambda x, noise: (1 + 2 * x) * noise,
    "through origin": lambda x, noise: 2 * x * noise,
    "flat": lambda x, noise: noise,
    "late": lambda x, noise: np.maximum(0, x - 1) + 0.1 * noise,
    "falling": lambda x, noise: noise / x,
    "coarse": lambda x, noise: np.round(3 * noise, 0),
    "ties": lambda x, noise: np.round((1 + 2 * x) * noise),
    "mostly zero": lambda x, noise: np.maximum(0, noise - 1.2) * x,
}


def cloud_of(shape, n, seed):
    generator = np.random.default_rng([seed, n])
    x = np.exp(generator.normal(0, 1, n))
    if shape == "ties":
        x = np.round(x, 1)
    elif shape == "coarse":
        # Some points at gradient norm zero.
        x = np.append(np.floor(x)[1:], 3)
    return x, SHAPES[shape](x, np.exp(generator.normal(0, 0.5, n)))


def pinball(x, y, q, line):
    residual = y - line[0] - line[1] * x
    return np.maximum(q * residual, (q - 1) * residual).sum()


def made_cloud(groups=3, n=50, seed=0, by="module"):
    generator = np.random.default_rng(seed)
    x = np.exp(generator.normal(0, 1, (n, groups)))
    y = (1 + 2 * x) * np.exp(generator.normal(0, 0.3, (n, groups)))
    return Cloud(
        by=by,
        groups=tuple(f"group {i}" for i in range(groups)),
        steps=np.arange(n),
        smoothness=y,
        grad_norm=x,
        status=np.full(n, int(Status.MEASURED), dtype=np.uint8),
        loss=np.linspace(3, 1, n),
        lr=np.full(n, 0.1),
    )


def cloud_with(smoothness, seed=0, n=400, noise=0.05):
    """Return a cloud of one group, smoothness a function of its gradient norm and loss; the loss falls, then rises."""
    generator = np.random.default_rng(seed)
    x = np.exp(generator.normal(0, 1, n))
    loss = 2.5 + np.cos(np.linspace(0, 40, n)) + 0.2 * generator.random(n)
    y = smoothness(x, loss) * np.exp(noise * generator.normal(size=n))
    return Cloud(
        by="global",
        groups=("global",),
        steps=np.arange(n),
        smoothness=y[:, None],
        grad_norm=x[:, None],
        status=np.full(n, int(Status.MEASURED), dtype=np.uint8),
        loss=loss,
        lr=np.full(n, 0.1),
    )


@dataclass(frozen=True)
class Law:
    """How smoothness follows from gradient norms in a run of so many steps, and what is to be said of it how often."""

    smoothness: Callable
    steps: int
    fall: float
    right: tuple
    share: float


LAWS = {
    "constant": Law(lambda x: 3 + 0 * x, 90, 1.5, ("constant",), 0.95),
    # Over the run, 0.2 + x spans a factor of ten.
    "linear": Law(lambda x: 0.2 + x, 90, 1.0, ("linear", "power"), 0.95),
    "power": Law(lambda x: 0.1 + x**1.5, 500, 1.5, ("power",), 0.8),
}
# Shape, correlation of neighbouring steps, and how much of the variance is white noise on top.
NOISES = {
    **{kind: (*noise, 0) for kind, noise in KINDS["trend"].items()},
    "heavy-tailed, correlated": ("pareto", 0.7, 0),
    "slow under white": ("like runs", 0.9, 0.5),
}
# Rows of the table on the page. Those of the last two groups say where the verdict is less sure.
VERDICTS = [
    *((name, noise, law.steps) for name, law in LAWS.items() for noise in NOISES if noise != "slow under white"),
    *(("constant", noise, 40) for noise in ("proportional", "correlated")),
    *(("constant", "slow under white", steps) for steps in (90, 500)),
]


def law_cloud(name, noise, trials, seed=0, steps=None):
    """Return a cloud of `LAWS` with one group a trial."""
    law, (shape, correlation, white) = LAWS[name], NOISES[noise]
    steps = steps or law.steps
    generator = np.random.default_rng([seed, steps, 5])
    falling = law.fall * (1 - 2 * np.arange(steps)[:, None] / steps)
    x = np.exp(falling + 0.5 * correlated_normals(generator, steps, trials, 0.9))
    noise = correlated_normals(generator, steps, trials, correlation)
    loss = np.linspace(3, 1, steps) + 0.1 * generator.normal(size=steps)
    noise = np.sqrt(1 - white) * noise + np.sqrt(white) * generator.normal(size=noise.shape)
    smoothness = law.smoothness(x) * UNBOUNDED[shape](norm.cdf(noise))
    return replace(made_cloud(trials, steps), grad_norm=x, smoothness=smoothness, loss=loss)


def named_conditions(name, noise, trials, seeds=(0,), steps=None):
    """Return the share of trials in which each condition is named, seeds pooled."""
    tables = pd.concat(fit.compare(law_cloud(name, noise, trials, seed, steps)) for seed in seeds)
    return {condition: float(rows.best.mean()) for condition, rows in tables.groupby("condition", sort=False)}


def oracle_power(trials, seeds=SEEDS, level=0.05):
    """Return how often a likelihood ratio tells the linear law from a constant, lognormal noise being correlated.

    It knows the covariance of the noise and the law but for its level: no test that errs as rarely does better (Neyman
    and Pearson).
    """
    law, (_, correlation, _) = LAWS["linear"], NOISES["correlated"]
    inverse = np.linalg.inv(0.65**2 * toeplitz(correlation ** np.arange(law.steps)))
    flat = inverse.sum(axis=0)
    inverse -= np.outer(flat, flat) / flat.sum()
    found = []
    for seed in seeds:
        cloud = law_cloud("linear", "correlated", trials, seed)
        away = np.log(law.smoothness(cloud.grad_norm))
        pointer = np.einsum("im,ij,jm->m", away, inverse, np.log(cloud.smoothness))
        found.extend(pointer / np.sqrt(np.einsum("im,ij,jm->m", away, inverse, away)) > norm.isf(level))
    return float(np.mean(found))


def print_verdicts(trials=200):
    """Print how often each condition is named, as a table of docs/estimates.md, and what can be had at all."""
    print(
        "| true condition | steps | noise | constant | linear | suboptimality | power |\n|---|---|---|---|---|---|---|"
    )
    for name, noise, steps in VERDICTS:
        named = named_conditions(name, noise, trials, steps=steps)
        shares = " | ".join(f"{100 * share:.3g} %" for share in named.values())
        print(f"| {name} | {steps} | {noise} | {shares} |", flush=True)
    for level in (0.05, 0.01):
        power = oracle_power(trials, level=level)
        print(f"oracle, linear against constant, 90 correlated steps, level {level:.0%}: {power:.1%}")


def print_trends(trials=200):
    """Print how trends do, as a table of docs/estimates.md."""
    print("| steps | noise | below | error | of least squares | intervals hold L0, L1 |\n|---|---|---|---|---|---|")
    for steps in (60, 90, 200, 2000):
        for kind in KINDS["trend"]:
            (below, least, most), error, squares, held = trend_quality(kind, trials, steps, seeds=SEEDS)
            print(
                f"| {steps:,} | {kind} | {below:.0%} ({least:.0%} to {most:.0%}) | {error:.3f} | {squares:.3f} | "
                f"{held[0]:.1%}, {held[1]:.1%} |".replace("%", " %"),
                flush=True,
            )


def print_intervals(trials=200, steps=2000):
    """Print how often intervals hold the truth."""
    print(f"{len(SEEDS)} seeds of {trials} trials of {steps} steps, intervals of 90 %")
    for method, kinds in KINDS.items():
        for kind in kinds:
            held_0, held_1, given = coverage(method, kind, trials, steps, seeds=SEEDS)
            print(f"{method:<13} {kind:<16} L0 {held_0:.1%}  L1 {held_1:.1%}  given in {given:.0%}", flush=True)


if __name__ == "__main__":
    {"trend": print_trends, "intervals": print_intervals, "verdict": print_verdicts}[sys.argv[1]](
        *map(int, sys.argv[2:])
    )
