"""The header of a trace, which is written before the first step: names along dimensions, and facts of the run."""

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
    """What a trace holds before its first step.

    Attributes:
        parameters: Names of the parameter tensors.
        parameter_sizes: Number of elements of each parameter tensor.
        gammas: Interpolation points.
        groups: Number of parameter groups of the optimizers.
        real: "float32" or "float64", the dtype of norms and followed coordinates.
        endpoint: Whether x_{t+1} is evaluated too.
        noise: Whether the probes' gradient noise is kept.
        norms: Names of the geometries that are measured besides l2.
        densities: Whether all coordinates are counted.
        blocks: Whether blocks of layers are moved alone.
        critical: Whether the critical learning rate is searched for.
        coordinate_names: Labels of the followed coordinates; empty for none.
        coordinate_owners: Position of the parameter tensor of each coordinate, int64 (c,).
        coordinate_indices: Index of each coordinate in the flattened tensor, int64 (c,).
        attributes: Root attributes of the file: text, numbers, or values that JSON can hold.
        format_version: The format that is written; datasets of later formats are left out.
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
        """Return the datasets along `step` of the trace, in the order in which they are appended."""
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
        """Return how the ranks' values of each dataset are joined; one join a tensor for the geometry "layers"."""
        found: dict[str, Join | tuple[Join, ...]] = {field.name: field.join for field in self.fields()}
        own = [GEOMETRIES[name].sharded for name in self.attributes.get("layer_norms", ())]
        layers = GEOMETRIES["layers"]
        for name in found if own else ():
            if name.startswith(layers.dataset("")):
                found[name] = tuple(of_step if name == layers.dataset("step_norm") else dual for of_step, dual in own)
        return found

    def sizes(self) -> dict[str, int]:
        """Return the length of every dimension except `step`."""
        return {
            "gamma": len(self.gammas),
            "parameter": len(self.parameters),
            "group": self.groups,
            "coordinate": len(self.coordinate_names),
        }

    def record(self) -> np.dtype[Any]:
        """Return the dtype of a row in the slots of `recent`."""
        return record_of(self.fields(), self.sizes(), self.real)
