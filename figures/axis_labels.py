"""The labels of the axes of gradient norm and smoothness."""

from __future__ import annotations

from lsmooth.figures.points import Points
from lsmooth.trace.layout import GEOMETRIES

Y_LABEL = "local Lipschitz constant"
ENDPOINT_LABEL = r"$\min(|\partial_j f(x_t)|,\ |\partial_j f(x_{t+1})|)$"
INTERPOLATED_LABEL = r"$\min(|\partial_j f(x_t)|,\ |\partial_j f(x_t + \gamma d)|)$"
# Below points of coordinates that do not say whether they are of the endpoint.
BOTH_ENDS_LABEL = r"smaller of both ends' $|\partial_j f|$"


def x_label(points: Points) -> str:
    """Return the label of an axis of gradient norms."""
    if points.by == "coordinate":
        return BOTH_ENDS_LABEL
    return rf"gradient norm $\|\nabla f(x_t)\|{GEOMETRIES[points.norm].dual_symbol}$"


def y_label(norm: str) -> str:
    """Return the label of an axis of smoothness."""
    label = GEOMETRIES[norm].label
    # A line of its own: one line of both is longer than a figure of a single column is high.
    return f"{Y_LABEL}\n({label})" if label else Y_LABEL
