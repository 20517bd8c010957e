"""Figures of a trace, drawn with seaborn and matplotlib.

Axes-level functions take a trace (or its points) and `ax=`, draw, and return the Axes; figure-level ones take
`figure=`, arrange several Axes in it, and return them. None saves a file, and none changes matplotlib's settings: a
figure that a function makes itself is in the house style, which `style()` gives to figures made elsewhere.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsmooth.figures.constants import constants_panels, layer_constants
    from lsmooth.figures.coordinates import coordinate_grid
    from lsmooth.figures.curves import loss_frame, training_curves
    from lsmooth.figures.density import coordinate_density
    from lsmooth.figures.descent_bound import lower_bound
    from lsmooth.figures.edge import edge_ratio
    from lsmooth.figures.heatmap import layer_heatmap
    from lsmooth.figures.house import style
    from lsmooth.figures.panels import smoothness_panels
    from lsmooth.figures.scatter import smoothness_scatter
    from lsmooth.figures.segments import segment_profile
    from lsmooth.figures.stability_limit import stability

# Drawing libraries are loaded with the first figure, not with the package.
_HOME = {
    "constants_panels": "constants",
    "coordinate_density": "density",
    "coordinate_grid": "coordinates",
    "edge_ratio": "edge",
    "layer_constants": "constants",
    "layer_heatmap": "heatmap",
    "loss_frame": "curves",
    "lower_bound": "descent_bound",
    "segment_profile": "segments",
    "smoothness_panels": "panels",
    "smoothness_scatter": "scatter",
    "stability": "stability_limit",
    "style": "house",
    "training_curves": "curves",
}

__all__ = [
    "constants_panels",
    "coordinate_density",
    "coordinate_grid",
    "edge_ratio",
    "layer_constants",
    "layer_heatmap",
    "loss_frame",
    "lower_bound",
    "segment_profile",
    "smoothness_panels",
    "smoothness_scatter",
    "stability",
    "style",
    "training_curves",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"lsmooth.figures.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lsmooth.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
