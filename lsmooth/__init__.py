"""Measure how smooth a neural network's loss really is, while it is being trained.

The public names are resolved when they are first used, so that the reading side (`Trace`, `estimate`, `figures`)
never pays for importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsmooth import figures, optim, theory
    from lsmooth.errors import LsmoothError
    from lsmooth.fit import estimate
    from lsmooth.recorder import Recorder
    from lsmooth.trace.reader import Trace

__version__ = "0.2.0"

_HOME = {
    "LsmoothError": "lsmooth.errors",
    "Recorder": "lsmooth.recorder",
    "Trace": "lsmooth.trace.reader",
    "estimate": "lsmooth.fit",
}
_SUBMODULES = ("figures", "optim", "theory")

__all__ = ["LsmoothError", "Recorder", "Trace", "__version__", "estimate", "figures", "optim", "theory"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"lsmooth.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lsmooth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
