"""Advice from the constants of a run on its learning rate, clipping and momentum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import LsmoothError, TraceError
from lsmooth.theory import Floats, descent_check, theorem1
from lsmooth.trace.attributes import probe_count
from lsmooth.trace.curvature import edge_ratios
from lsmooth.trace.layout import Status
from lsmooth.trace.reader import Trace, check_trace

# A step below this share of lr |g| is shorter by more than rounding.
_SHORTER = 0.99


@dataclass(frozen=True)
class Advice:
    """One statement about a run.

    Attributes:
        name: Its subject: "stable step", "edge", "critical lr", "clipping", "descent step", "descent", or
            "theorem 1".
        text: The statement, in plain words with its numbers.
        formula: The formula that was computed.
        source: Source of the formula.
        values: The numbers by name.
    """

    name: str
    text: str
    formula: str
    source: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """All advice on a run, and the reasons why some is missing.

    Attributes:
        advice: The statements.
        left_out: Reason by name of each statement that could not be made.
    """

    advice: tuple[Advice, ...]
    left_out: dict[str, str]


def advise(trace: Trace, *, beta2: float = 0.0) -> Report:
    """Return what a trace's constants say about its learning rate, clipping and momentum.

    Args:
        trace: An open trace.
        beta2: Second-moment factor that Theorem 1 is asked about; 0 is SIGNUM.

    Raises:
        InvalidArgumentError: `trace` is no open trace.
        TraceError: The trace is damaged.

    Examples:
        >>> with lsmooth.Trace("run.h5") as trace:  # doctest: +SKIP
        ...     for advice in advise(trace).advice:
        ...         print(advice.text)
    """
    check_trace(trace)
    statements: dict[str, Callable[[], Advice]] = {
        "stable step": lambda: _stable_step(trace),
        "edge": lambda: _edge(trace),
        **({"critical lr": lambda: _critical(trace)} if trace.has("critical_gamma") else {}),
        "clipping": lambda: _clipping(trace),
        "descent step": lambda: _descent_step(trace),
        "descent": lambda: _descent(trace),
        "theorem 1": lambda: _theorem1(trace, beta2),
    }
    advice: list[Advice] = []
    left_out: dict[str, str] = {}
    for name, statement in statements.items():
        try:
            advice.append(statement())
        except LsmoothError as error:
            left_out[name] = str(error)
    return Report(tuple(advice), left_out)


def _stable_step(trace: Trace) -> Advice:
    cloud = trace.cloud("global")
    rates = trace.lr
    lr = rates.max(axis=1) if rates.shape[1] else np.full(len(trace), np.nan)
    known = cloud.usable[:, 0] & (cloud.smoothness[:, 0] > 0) & np.isfinite(lr)
    if not known.any():
        raise TraceError("no usable step has both a smoothness and a learning rate.")
    factor, formula, caution = _stability(trace)
    limits = factor / cloud.smoothness[known, 0]
    above = lr[known] > limits
    spread = np.percentile(limits, [0, 50, 100])
    caution += _shorter_steps(trace, known, lr[known], limits)
    values = {
        "median": float(spread[1]),
        "least": float(spread[0]),
        "largest": float(spread[2]),
        "share_above": float(above.mean()),
        "steps": len(above),
    }
    momentum = _momentum(trace)
    if momentum:
        values["small_batch_median"] = float(np.median(2 * (1 - momentum) / cloud.smoothness[known, 0]))
        caution += (
            f" With small batches, the momentum of {momentum:g} may allow no more than 2 (1 - momentum) / L, "
            f"{values['small_batch_median']:.3g} in the median."
        )
    return Advice(
        "stable step",
        f"No step above {spread[1]:.3g} can be stable, in the median (from {spread[0]:.3g} to {spread[2]:.3g}); lr was "
        f"above that at {_share(above)} of {len(above)} steps. The limit may be far lower: the smoothness along one "
        f"step is a lower bound of the largest curvature.{caution}",
        f"lr <= {formula} is necessary, L the smoothness along the step",
        "gradient descent and the heavy ball on a quadratic (Polyak 1964); Cohen et al. 2021, Gradient Descent on "
        "Neural Networks Typically Occurs at the Edge of Stability, for full batches; Andreyev and Beneventano "
        "2024, Edge of Stochastic Stability, for small ones",
        values,
    )


def _momentum(trace: Trace) -> float:
    """Return the momentum of a run by SGD whose groups share it, without Nesterov's; 0 for any other run."""
    groups = trace.metadata.get("optimizer_groups") or [{}]
    momenta = {float(group.get("momentum") or 0.0) for group in groups}
    plain = trace.metadata.get("optimizer") == "SGD" and not any(group.get("nesterov") for group in groups)
    return momenta.pop() if plain and len(momenta) == 1 else 0.0


def _shorter_steps(trace: Trace, known: NDArray[np.bool_], lr: Floats, limits: Floats) -> str:
    """Return a sentence on the effective lr of plain SGD whose steps are shorter than lr |g|, as with clipping."""
    groups = trace.metadata.get("optimizer_groups") or [{}]
    plain = trace.metadata.get("optimizer") == "SGD" and len(groups) == 1
    if not plain or groups[0].get("momentum") or groups[0].get("weight_decay"):
        return ""
    moved, norm = (
        np.sqrt((trace.read(name)[known].astype(np.float64) ** 2).sum(axis=1)) for name in ("step_norm", "grad_norm")
    )
    rates = np.divide(moved, norm, out=lr.copy(), where=norm > 0)
    shorter = rates < _SHORTER * lr
    if not shorter.any():
        return ""
    return (
        f" But {_share(shorter)} of them were shorter than lr |g|, as clipping makes them: the lr this comes to, "
        f"|d|/|g|, had a median of {np.median(rates):.3g} and was above the limit at {_share(rates > limits)}."
    )


def _stability(trace: Trace) -> tuple[float, str, str]:
    """Return an upper bound of the stable lr times L, its formula, and a caution about the optimizer."""
    optimizer = str(trace.metadata.get("optimizer", ""))
    groups = trace.metadata.get("optimizer_groups") or [{}]
    momentum = float(groups[0].get("momentum") or 0.0)
    kept = 1 - float(groups[0].get("dampening") or 0.0)
    if optimizer != "SGD":
        name = optimizer or "an optimizer that the trace does not name"
        return 2.0, "2/L", f" That is said of gradient descent; for {name} it is a mark, not a limit."
    if any(group.get("momentum") != groups[0].get("momentum") for group in groups):
        return 2.0, "2/L", " That is without momentum, which differs between this run's parameter groups."
    if momentum == 0:
        return 2.0, "2/L", ""
    if groups[0].get("nesterov"):
        return (2 + 2 * momentum) / (1 + 2 * momentum), "(2 + 2 momentum) / ((1 + 2 momentum) L)", ""
    return (2 + 2 * momentum) / kept, "(2 + 2 momentum) / ((1 - dampening) L)", ""


def _whose_loss(trace: Trace) -> str:
    return "the probes' mean loss" if probe_count(trace.metadata) else "its own batch's loss"


def _edge(trace: Trace) -> Advice:
    ratios = edge_ratios(trace)
    known = (trace.status == Status.MEASURED) & np.isfinite(ratios)
    if not known.any():
        raise TraceError("no step measured well has an edge ratio; record with endpoint=True, in format 1.2.")
    ratios = ratios[known]
    above = ratios > 2
    raised = trace.read("loss_next")[known] > trace.loss[known]
    values = {
        "median": float(np.median(ratios)),
        "share_above": float(above.mean()),
        "share_raised": float(raised.mean()),
        "steps": len(ratios),
    }
    return Advice(
        "edge",
        f"The edge ratio of the steps was {values['median']:.3g} in the median and above 2, where a step on a "
        f"quadratic raises {_whose_loss(trace)}, at {_share(above)} of {len(ratios)} steps; it rose at "
        f"{_share(raised)}. "
        "This is said of the optimizer's own steps, whatever it is.",
        "<grad f(x_{t+1}) - grad f(x_t), d> / -<grad f(x_t), d>",
        "Andreyev and Beneventano 2024, Edge of Stochastic Stability: batch sharpness along the step taken",
        values,
    )


def _critical(trace: Trace) -> Advice:
    table = trace.critical_lr()
    gamma = table.critical_gamma[table.usable].to_numpy()
    if not len(gamma):
        raise TraceError("no step measured well has a critical learning rate.")
    # Values may be infinite; their median is still meaningful.
    values = {"median": float(np.median(gamma)), "share_below": float((gamma < 1).mean()), "steps": len(gamma)}
    return Advice(
        "critical lr",
        f"A step raised {_whose_loss(trace)} from {values['median']:.3g} times its lr on, in the median; at "
        f"{_share(gamma < 1)} of {len(gamma)} steps lr was above the critical learning rate.",
        "lr times the first gamma at which f(x_t + gamma d) > f(x_t)",
        "Kalra and Barkeshli 2023, on the critical learning rate during warmup",
        values,
    )


def _clipping(trace: Trace) -> Advice:
    L0, L1, grad_norm = _constants(trace, "trend")
    source = (
        "Zhang, He, Sra, Jadbabaie 2020, Why Gradient Clipping Accelerates Training: 1/(L0 + L1 |g|) is "
        "min(1/L0, 1/(L1 |g|)), a clipped step, up to a factor of 2"
    )
    if L1 == 0:
        return Advice(
            "clipping",
            "Smoothness does not grow with the gradient norm here: nothing calls for clipping.",
            f"L1 = 0 of the trend, L0 = {L0:.3g}",
            source,
            {"L0": L0, "L1": L1, "threshold": None, "share_above": 0.0},
        )
    threshold = L0 / L1
    above = grad_norm > threshold
    if L0 == 0:
        text = (
            "Smoothness is proportional to the gradient norm here, with no floor: clipping matters at every gradient, "
            f"and steps of one length, about 1/L1 = {1 / L1:.3g}, suit it."
        )
    else:
        text = (
            f"Clipping starts to matter at a gradient norm of about {threshold:.3g}; {_share(above)} of {len(above)} "
            f"gradients were longer. That is clip_grad_norm_ with max_norm={threshold:.3g}, or SGDClip with max_norm = "
            f"lr x {threshold:.3g}."
        )
    return Advice(
        "clipping",
        text,
        f"L0/L1 of the trend, L0 = {L0:.3g}, L1 = {L1:.3g}",
        source,
        {"L0": L0, "L1": L1, "threshold": threshold, "share_above": float(above.mean())},
    )


def _descent_step(trace: Trace) -> Advice:
    L0, L1, grad_norm = _constants(trace, "envelope")
    with np.errstate(divide="ignore"):
        steps = 1 / (L0 + L1 * grad_norm)
    middle = float(np.median(steps))
    return Advice(
        "descent step",
        f"A gradient step of 1/(L0 + L1 |g|) lowers {_whose_loss(trace)} where the constants hold in every direction, "
        f"not only along the steps that were measured: {middle:.3g} in the median, from {steps.min():.3g} to "
        f"{steps.max():.3g}.",
        f"1/(L0 + L1 |g|) of the envelope, L0 = {L0:.3g}, L1 = {L1:.3g}",
        "minimizes the bound of Lemma 1, Crawshaw et al. 2022, in its global form",
        {"L0": L0, "L1": L1, "median": middle, "least": float(steps.min()), "largest": float(steps.max())},
    )


def _descent(trace: Trace) -> Advice:
    check = descent_check(trace)
    if not check.within_reach:
        raise TraceError(f"no step was within 1/L1 = {1 / check.L1:.3g}, where Lemma 1 speaks.")
    return Advice(
        "descent",
        f"At {100 * check.share:.3g} % of the {check.within_reach} steps that were short enough, the loss changed by "
        "no more than Lemma 1 allows.",
        "f(x + d) - f(x) <= <g, d> + (L0 + L1 |g|) |d|²/2 for |d| <= 1/L1, constants of the envelope",
        "Crawshaw et al. 2022, Lemma 1, in its global form",
        {"L0": check.L0, "L1": check.L1, "share": check.share, "steps": check.within_reach},
    )


def _theorem1(trace: Trace, beta2: float) -> Advice:
    from lsmooth.fit import estimate

    if not trace.has("grad_noise"):
        raise TraceError("the noise of the gradient is not known; record with probe= batches.")
    well = trace.cloud("global").usable[:, 0]
    if not well.any():
        raise TraceError("no step was measured well.")
    first, steps = float(trace.loss[well][0]), int(trace.steps[-1]) + 1
    if float(trace.loss[well].min()) < 0 or first <= 0:
        raise TraceError("losses fall below 0, so that F(x_1) is no bound on F(x_1) - inf F.")
    sizes = trace.parameter_sizes.astype(np.float64)
    lines = estimate(trace, "parameter", method="envelope", displacement="global", confidence=None)
    fitted = np.isfinite(lines["L0"].to_numpy())
    if not fitted.any():
        raise TraceError("no parameter tensor has enough usable points for L0 and L1.")
    sizes, noise = sizes[fitted], trace.read("grad_noise").astype(np.float64)[well][:, fitted].max(axis=0)
    # Coordinates of one tensor share its constants: |Delta_j| = ‖Delta_S‖/√n and |d_j F| = ‖grad_S F‖/√n.
    result = theorem1(
        L0=lines["L0"].to_numpy()[fitted] * np.sqrt(sizes.sum() / sizes),
        L1=lines["L1"].to_numpy()[fitted],
        sigma=noise / np.sqrt(sizes),
        delta=first,
        steps=steps,
        beta2=beta2,
        counts=sizes,
    )
    reservation = (
        ""
        if result.holds
        else f" The guarantee itself holds from {result.least_steps:.2g} steps on: take them as a start."
    )
    skipped = f" {int((~fitted).sum())} tensors without constants are left out." if not fitted.all() else ""
    return Advice(
        "theorem 1",
        f"For generalized SignSGD over {steps} steps, Theorem 1 chooses beta1 = {result.beta1:.4g} and "
        f"lr = {result.lr:.3g} (beta2 = {beta2:g}).{reservation}{skipped}",
        "alpha = min(1, √(|L0|_1 delta)/(|sigma|_1 √T)), beta1 = 1 - alpha, lr = √(delta alpha/(|L0|_1 T)); delta is "
        "the first loss, sigma the noise of one probe batch, coordinates of a tensor are taken as alike",
        "Crawshaw et al. 2022, Theorem 1; proven with constants in docs/theory.md",
        {
            "beta1": result.beta1,
            "beta2": beta2,
            "lr": result.lr,
            "alpha": result.alpha,
            "rho": result.rho,
            "steps": steps,
            "least_steps": result.least_steps,
            "binding": result.binding,
            "holds": result.holds,
        },
    )


def _constants(trace: Trace, method: str) -> tuple[float, float, NDArray[np.float64]]:
    """Return L0 and L1 of the whole run, and the gradient norms they were fitted to."""
    from lsmooth.fit import estimate

    cloud = trace.cloud("global")
    row = estimate(cloud, method=method, confidence=None).iloc[0]
    if math.isnan(row["L0"]):
        raise TraceError(f"L0 and L1 cannot be fitted: {row['reason']}.")
    return float(row["L0"]), float(row["L1"]), cloud.grad_norm[cloud.usable[:, 0], 0]


def _share(chosen: NDArray[np.bool_]) -> str:
    return f"{100 * float(chosen.mean()):.3g} %"
