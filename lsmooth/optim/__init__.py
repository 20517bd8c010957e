"""Generalized SignSGD and the optimizers it is compared with.

`NAMES`, `hyperparameters` and `build` know all of them by the names that the command line uses. The names can be read
without importing torch; the classes bring it in when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lsmooth.optim.catalogue import NAMES, build, hyperparameters

if TYPE_CHECKING:
    from lsmooth.optim.generalized_signsgd import GeneralizedSignSGD
    from lsmooth.optim.sgd_clip import SGDClip
    from lsmooth.optim.sgd_normalized import SGDNormalized

_HOME = {
    "GeneralizedSignSGD": "lsmooth.optim.generalized_signsgd",
    "SGDClip": "lsmooth.optim.sgd_clip",
    "SGDNormalized": "lsmooth.optim.sgd_normalized",
}

__all__ = ["NAMES", "GeneralizedSignSGD", "SGDClip", "SGDNormalized", "build", "hyperparameters"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lsmooth.optim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
