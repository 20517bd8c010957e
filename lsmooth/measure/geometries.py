"""Which norms a recorder takes of displacements, and which of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lsmooth.measure.norms import Kind, TensorNorms
from lsmooth.parallel.shards import local
from lsmooth.trace.layout import Geometry


@dataclass(frozen=True)
class NormsInUse:
    """What takes the norms of a measured step; two that take the same norms are one.

    They are used one after another: whoever adds to one takes the result before anybody else adds.

    Attributes:
        two: Takes 2-norms.
        displacements: Takes the norms of the geometries that displacements are measured in.
        gradients: Takes their duals.
    """

    two: TensorNorms
    displacements: TensorNorms
    gradients: TensorNorms

    @classmethod
    def of(
        cls, parameters: Sequence[Tensor], geometries: Sequence[Geometry], layers: Sequence[Geometry] = ()
    ) -> NormsInUse:
        """Return what takes the norms of some parameters' gradients and displacements; `layers` are their own ones."""
        sizes = [local(p).numel() for p in parameters]
        some: tuple[tuple[tuple[Kind, ...], tuple[Kind, ...]], ...] = (
            (("l2",), ()),
            (tuple(g.displacement for g in geometries), tuple(layer.displacement for layer in layers)),
            (tuple(g.gradient for g in geometries), tuple(layer.gradient for layer in layers)),
        )
        norms = {asked: TensorNorms(sizes, parameters[0].device, *asked) for asked in dict.fromkeys(some)}
        return cls(*(norms[asked] for asked in some))
