"""Groups of a cloud as matrices, and the reasons why points or whole groups are left out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lsmooth.fit.lines import Floats, at_one_norm
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.grouping import By
from lsmooth.trace.layout import Status
from lsmooth.trace.reader import Displacement, Trace

# With fewer points than this there is no number, only the reason.
FEWEST = 10
# Numbers that one pass holds at a time: few enough to stay in the processor's cache.
_CHUNK = 1 << 18


def chosen_cloud(trace: Trace | Cloud, by: By, norm: str, displacement: Displacement, endpoint: bool) -> Cloud:
    """Return the cloud of a trace; a `Cloud` is one already."""
    if isinstance(trace, Cloud):
        return trace
    return trace.cloud(by, norm=norm, displacement=displacement, endpoint=endpoint)


def batches(cloud: Cloud, against: str, refusals: dict[int, str]) -> Iterator[tuple[NDArray[np.intp], Floats, Floats]]:
    """Yield groups that have equally many usable points together: their columns, and x and y as matrices (m, n).

    Groups that cannot be fitted go to `refusals`, with the reason.
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
    """Return for each group how many of its points were left out and why; "" where none was."""
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
