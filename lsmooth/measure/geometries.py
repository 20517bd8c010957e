"""The norms that a recorder takes of displacements and of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lsmooth.measure.norms import Kind, TensorNorms, memory_to_pack
from lsmooth.parallel.shards import local
from lsmooth.trace.layout import Geometry


@dataclass(frozen=True)
class NormsInUse:
    """The `TensorNorms` of a measured step; attributes that take the same norms are the same object.

    Since objects may be shared, a quantity that adds tensors must take the result before another quantity adds.

    Attributes:
        two: Takes 2-norms.
        displacements: Takes the norms of displacements in each geometry.
        gradients: Takes the dual norms.
    """

    two: TensorNorms
    displacements: TensorNorms
    gradients: TensorNorms

    @classmethod
    def of(
        cls, parameters: Sequence[Tensor], geometries: Sequence[Geometry], layers: Sequence[Geometry] = ()
    ) -> NormsInUse:
        """Return the norms of some parameters' gradients and displacements.

        Args:
            parameters: The measured parameters.
            geometries: The geometries to measure in.
            layers: The geometry of each parameter's own norm; empty if none is measured.
        """
        sizes = [local(p).numel() for p in parameters]
        some: tuple[tuple[tuple[Kind, ...], tuple[Kind, ...]], ...] = (
            (("l2",), ()),
            (tuple(g.displacement for g in geometries), tuple(layer.displacement for layer in layers)),
            (tuple(g.gradient for g in geometries), tuple(layer.gradient for layer in layers)),
        )
        device = parameters[0].device
        packed = memory_to_pack(sizes, device)
        norms = {asked: TensorNorms(sizes, device, *asked, packed) for asked in dict.fromkeys(some)}
        return cls(*(norms[asked] for asked in some))
