"""What a trace says before its first step: the names along its dimensions, and which run this is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsmooth.join import Join
from lsmooth.trace.layout import FORMAT_VERSION, GEOMETRIES, Field, fields_of
from lsmooth.trace.recent import record_of


@dataclass(frozen=True)
class Header:
    """What a trace says before its first step.

    Attributes:
        parameters: Names of the parameter tensors.
        parameter_sizes: Their numbers of elements.
        gammas: Interpolation points.
        groups: Number of parameter groups of the optimizer.
        real: "float32" or "float64", the dtype of norms and followed coordinates.
        endpoint: Whether x_{t+1} is evaluated too.
        noise: Whether the probes' gradient noise is kept.
        norms: Geometries that are measured besides l2.
        densities: Whether all coordinates are counted.
        blocks: Whether blocks of layers are moved by themselves.
        critical: Whether the critical learning rate is searched for.
        coordinate_names: Labels of the followed coordinates; empty for none.
        coordinate_owners: Positions of their parameter tensors.
        coordinate_indices: Their positions in the flattened tensors.
        attributes: Root attributes; text, numbers, and what JSON can hold.
        format_version: The format that is written. Datasets of later formats are left out.
    """

    parameters: tuple[str, ...]
    parameter_sizes: tuple[int, ...]
    gammas: tuple[float, ...]
    groups: int
    real: str
    endpoint: bool
    noise: bool
    coordinate_names: tuple[str, ...]
    coordinate_owners: NDArray[np.int64]
    coordinate_indices: NDArray[np.int64]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    densities: bool = False
    blocks: bool = False
    critical: bool = False
    format_version: str = FORMAT_VERSION

    def fields(self) -> list[Field]:
        """Return the datasets that such a trace has, in the order in which they are appended."""
        measured = {
            "endpoint": self.endpoint,
            "noise": self.noise,
            "coordinates": bool(self.coordinate_names),
            "critical": self.critical,
            "blocks": self.blocks,
        }
        there = (name for name, measures in measured.items() if measures)
        return fields_of(frozenset({*self.norms, *there}), self.format_version)

    def joins(self) -> dict[str, Join | tuple[Join, ...]]:
        """Return how the ranks' shares make the whole of each dataset; of the geometry "layers", by tensor."""
        found: dict[str, Join | tuple[Join, ...]] = {field.name: field.join for field in self.fields()}
        own = [GEOMETRIES[name].sharded for name in self.attributes.get("layer_norms", ())]
        layers = GEOMETRIES["layers"]
        for name in found if own else ():
            if name.startswith(layers.dataset("")):
                found[name] = tuple(of_step if name == layers.dataset("step_norm") else dual for of_step, dual in own)
        return found

    def sizes(self) -> dict[str, int]:
        """Return the length of every dimension but `step`."""
        return {
            "gamma": len(self.gammas),
            "parameter": len(self.parameters),
            "group": self.groups,
            "coordinate": len(self.coordinate_names),
        }

    def record(self) -> np.dtype[Any]:
        """Return the dtype of a row among the newest ones."""
        return record_of(self.fields(), self.sizes(), self.real)
