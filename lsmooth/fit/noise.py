"""Gradient noise: its growth with the gradient norm, and the simple noise scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.estimators import joined_norms
from lsmooth.fit.batches import FEWEST
from lsmooth.fit.groups import estimate
from lsmooth.fit.lines import Floats
from lsmooth.fit.longrun import covariances
from lsmooth.join import Join
from lsmooth.trace.attributes import probe_count
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.clouds import check_norm
from lsmooth.trace.grouping import By, group_parameters
from lsmooth.trace.layout import GEOMETRIES, Status
from lsmooth.trace.reader import Trace, check_trace


@dataclass(frozen=True)
class NoiseCloud:
    """Variances of the probes' gradients, and squared norms of the full gradient.

    Attributes:
        groups: Names of the m groups, in the network's order.
        steps: Optimizer step index of each of the n measured steps, int64 (n,).
        variance: sigma², the mean squared dual norm of a probe's gradient minus the full gradient, (n, m).
        squared: ‖grad F‖² in the dual norm, (n, m). In l2 it is that of the probes' mean minus sigma² / probes, which
            may be negative where noise hides the gradient.
        status: Bit flags of each step, uint16 (n,).
        probes: Number of probes.
        norm: The geometry.
    """

    groups: tuple[str, ...]
    steps: NDArray[np.int64]
    variance: Floats
    squared: Floats
    status: NDArray[np.integer]
    probes: int
    norm: str

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Whether each point is measured well and finite, bool (n, m)."""
        well = self.status == Status.MEASURED
        return well[:, None] & np.isfinite(self.variance) & np.isfinite(self.squared)

    def as_points(self, loss: Floats) -> Cloud:
        """Return variances against squared norms (at least 0) as a cloud."""
        lr = np.full(len(self.steps), np.nan)
        squared = np.maximum(self.squared, 0.0)
        return Cloud("noise", self.groups, self.steps, self.variance, squared, self.status, loss, lr, self.norm)


def noise_cloud(trace: Trace, by: By = "global", *, norm: str = "l2") -> NoiseCloud:
    """Return the noise of a trace's probes, and the gradient norms that it is compared with.

    The norm of a mean of n probes is too large by its noise: E ‖mean‖2² = ‖grad F‖2² + sigma² / n. In l2 this excess is
    subtracted. In other norms it is not known (it is at least 0, and limited by the triangle inequality), and ‖mean‖
    stands for ‖grad F‖. There the sigma of a group of tensors is the sum of theirs, an upper bound.

    Args:
        trace: An open trace, recorded with two probes or more.
        by: As for `Trace.cloud`, coordinates excepted.
        norm: As for `Trace.cloud`.

    Raises:
        InvalidArgumentError: There is no such norm, or no parameter falls into any group.
        TraceError: The trace has no noise in this norm, or is damaged.
    """
    if by == "coordinate":
        raise InvalidArgumentError("by='coordinate' has no noise; use global, module or parameter.")
    check_trace(trace)
    check_norm(trace, norm)
    geometry = GEOMETRIES[norm]
    if not trace.has(geometry.dataset("grad_noise")):
        raise TraceError(
            f"{trace.path} holds no noise of gradients in this norm; record with two probes or more (`lsmooth "
            "train --probe`), in format 1.2."
        )
    members = group_parameters(trace.parameters, by)
    groups = list(members.values())
    sigma = joined_norms(trace.read(geometry.dataset("grad_noise")), groups, geometry.gradient_join)
    mean = joined_norms(trace.read(geometry.dataset("grad_norm")), groups, geometry.gradient_join)
    probes = _probes_of(trace)
    excess = sigma**2 / probes if geometry.gradient_join == Join.NORM else 0.0
    return NoiseCloud(tuple(members), trace.steps, sigma**2, mean**2 - excess, trace.status, probes, norm)


def estimate_noise(
    trace: Trace,
    by: By = "global",
    *,
    norm: str = "l2",
    probe_size: int | None = None,
    confidence: float | None = 0.9,
) -> pd.DataFrame:
    """Return s0 and s1 of sigma² = s0² + s1² ‖grad F‖² for each group of parameters, and the simple noise scale.

    sigma is the standard deviation of one probe's gradient. The line (affine variance; Bottou, Curtis and Nocedal 2018,
    Assumption 4.3; s1 = 0 is bounded variance) is the trend of `lsmooth.estimate` through the points
    (‖grad F‖², sigma²), with its intervals; s0, s1 and their intervals are square roots of the line's.

    The simple noise scale is tr(Sigma) / ‖grad F‖² with Sigma the covariance of a single example's gradient (McCandlish
    et al. 2018, Equation 2.9). It is computed as probe_size sum_t sigma_t² / sum_t ‖grad F_t‖²: the ratio is taken of
    sums over steps, since ratios of single steps are biased (their Appendix A.1). Batches far below it average mostly
    noise.

    Args:
        trace: An open trace, recorded with two probes or more.
        by: As for `Trace.cloud`, coordinates excepted.
        norm: As for `Trace.cloud`; the noise scale is for l2 alone.
        probe_size: Number of examples in a probe, over all ranks; by default as given to the recorder.
        confidence: Confidence of the intervals, between 0 and 1; None for no intervals.

    Returns:
        One row a group: `group`; `s0`, `s1`, `noise_scale` and their intervals `s0_low` to `noise_scale_high`;
        `sigma`, the median over steps; `probes`, `points` and `left_out`; `reason`, why numbers are missing or not
        corrected.

    Raises:
        InvalidArgumentError: As for `noise_cloud`, or confidence is not between 0 and 1.
        TraceError: As for `noise_cloud`.
    """
    cloud = noise_cloud(trace, by, norm=norm)
    size = probe_size if probe_size is not None else trace.metadata.get("probe_size")
    lines = estimate(cloud.as_points(trace.loss), method="trend", confidence=confidence)
    table = pd.DataFrame({"group": lines["group"]})
    for ours, theirs in (("s0", "L0"), ("s1", "L1")):
        for end in ("", "_low", "_high"):
            table[ours + end] = np.sqrt(lines[theirs + end])
    scales = [_noise_scale(cloud, group, size, confidence) for group in range(len(cloud.groups))]
    for place, name in enumerate(("noise_scale", "noise_scale_low", "noise_scale_high")):
        table[name] = [numbers[place] for numbers, _ in scales]
    known = [np.sqrt(cloud.variance[usable, group]) for group, usable in enumerate(cloud.usable.T)]
    table["sigma"] = [float(np.median(values)) if len(values) else np.nan for values in known]
    table["probes"] = cloud.probes
    table["points"], table["left_out"] = lines["points"], lines["left_out"]
    hidden = ((cloud.squared <= 0) & cloud.usable).sum(axis=0)
    table["reason"] = [
        "; ".join(part for part in (reason, why, _hidden(count), _uncorrected(norm)) if part)
        for reason, (_, why), count in zip(lines["reason"], scales, hidden.tolist(), strict=True)
    ]
    return table


def _hidden(count: int) -> str:
    return f"at {count} steps the gradient is below the noise of the probes' mean, and counts as 0" if count else ""


def _uncorrected(norm: str) -> str:
    return "" if norm == "l2" else "norms of the probes' mean are not corrected for its noise"


def _probes_of(trace: Trace) -> int:
    """Return the number of probes of a run."""
    probes = probe_count(trace.metadata)
    if probes < 2:
        raise TraceError(f"{trace.path} does not say how many probes it has; record again.")
    return probes


def _noise_scale(
    cloud: NoiseCloud, group: int, size: object, confidence: float | None
) -> tuple[tuple[float, float, float], str]:
    """Return the simple noise scale of a group with its interval, and why it is missing.

    The logarithm of a ratio of means has the influence a_t / mean(a) - b_t / mean(b). The standard error of its mean
    allows for correlated steps; see `lsmooth.fit.longrun`.
    """
    nothing, usable = (np.nan, np.nan, np.nan), cloud.usable[:, group]
    if cloud.norm != "l2":
        return nothing, "the noise scale is defined for l2"
    if not isinstance(size, int) or size < 1:
        return nothing, "no noise scale, since the number of examples in a probe is not known: give probe_size"
    if usable.sum() < FEWEST:
        return nothing, ""
    variance, squared = cloud.variance[usable, group], cloud.squared[usable, group]
    if squared.mean() <= 0:
        return nothing, "no noise scale, since noise hides the gradient: more probes, or larger ones, would show it"
    scale = size * float(variance.mean() / squared.mean())
    if confidence is None or not scale:
        return (scale, np.nan, np.nan), ""
    from scipy.stats import t

    influence = variance / variance.mean() - squared / squared.mean()
    covariance, degrees = covariances(influence[None, None])
    reach = float(np.exp(t.isf((1 - confidence) / 2, degrees) * np.sqrt(covariance[0, 0, 0])))
    return (scale, scale / reach, scale * reach), ""
