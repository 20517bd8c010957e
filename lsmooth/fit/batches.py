"""Batches of groups of a cloud as matrices, and the reasons why points or groups are left out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lsmooth.fit.lines import Floats, at_one_norm
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.grouping import By
from lsmooth.trace.layout import Status
from lsmooth.trace.reader import Displacement, Trace, check_trace

# Groups with fewer points are not fitted; the reason says so.
FEWEST = 10
# Numbers held at a time: few enough for the processor's cache.
_CHUNK = 1 << 18


def chosen_cloud(trace: Trace | Cloud, by: By, norm: str, displacement: Displacement, endpoint: bool) -> Cloud:
    """Return the cloud of a trace; a `Cloud` is returned as it is."""
    if isinstance(trace, Cloud):
        return trace
    check_trace(trace)
    return trace.cloud(by, norm=norm, displacement=displacement, endpoint=endpoint)


def batches(cloud: Cloud, against: str, refusals: dict[int, str]) -> Iterator[tuple[NDArray[np.intp], Floats, Floats]]:
    """Yield groups with the same number of usable points: their columns, and x and y as matrices (m, n).

    Args:
        cloud: The cloud.
        against: What x is, in words, for reasons.
        refusals: Filled with the reason for each group that cannot be fitted.
    """
    usable = cloud.usable
    points = usable.sum(axis=0)
    for count in np.unique(points):
        same = np.flatnonzero(points == count)
        if count < FEWEST:
            refusals.update(dict.fromkeys(same.tolist(), f"{count} usable points, {FEWEST} are needed"))
            continue
        width = max(1, _CHUNK // int(count))
        for start in range(0, len(same), width):
            members = same[start : start + width]
            chosen = usable[:, members].T
            x = cloud.grad_norm[:, members].T[chosen].reshape(len(members), count)
            y = cloud.smoothness[:, members].T[chosen].reshape(len(members), count)
            alike = at_one_norm(x)
            if alike.any():
                refusals.update(dict.fromkeys(members[alike].tolist(), f"all points lie at one {against}"))
                members, x, y = members[~alike], x[~alike], y[~alike]
            if len(members):
                yield members, x, y


def left_out(cloud: Cloud) -> list[str]:
    """Return for each group how many of its points are left out and why; "" if none is."""
    usable = cloud.usable
    flagged = []
    for flag in Status:
        if flag != Status.MEASURED:
            count = int(((cloud.status & flag) != 0).sum())
            if count:
                flagged.append(f"{count} {str(flag.name).lower().replace('_', ' ')}")
    lost = cloud.measured_well[:, None] & ~usable
    noisy = lost & cloud.noisy
    reasons = []
    for spoiled, still in zip(noisy.sum(axis=0), (lost & ~noisy).sum(axis=0), strict=True):
        missing = [*flagged, f"{spoiled} below rounding noise"] if spoiled else list(flagged)
        if still:
            missing.append(f"{still} did not move")
        reasons.append(f"left out: {', '.join(missing)}" if missing else "")
    return reasons
