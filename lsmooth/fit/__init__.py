"""Fits L0 and L1 to a cloud of points: lines, their intervals, and a comparison of smoothness conditions.

The public names are resolved when they are first used, so that a command's `--help` can ask the table of methods
without importing pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsmooth.fit.comparison import compare, verdict
    from lsmooth.fit.envelopes import envelope
    from lsmooth.fit.groups import estimate
    from lsmooth.fit.noise import estimate_noise
    from lsmooth.fit.quantiles import quantile
    from lsmooth.fit.squares import expectile, least_squares
    from lsmooth.fit.trends import trend

_HOME = {
    "compare": "lsmooth.fit.comparison",
    "envelope": "lsmooth.fit.envelopes",
    "estimate": "lsmooth.fit.groups",
    "estimate_noise": "lsmooth.fit.noise",
    "expectile": "lsmooth.fit.squares",
    "least_squares": "lsmooth.fit.squares",
    "quantile": "lsmooth.fit.quantiles",
    "trend": "lsmooth.fit.trends",
    "verdict": "lsmooth.fit.comparison",
}

__all__ = [
    "compare",
    "envelope",
    "estimate",
    "estimate_noise",
    "expectile",
    "least_squares",
    "quantile",
    "trend",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lsmooth.fit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
