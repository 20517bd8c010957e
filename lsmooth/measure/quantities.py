"""The measured quantities: one small class each, which turns a step's gradients into numbers of its row.

Throughout, d = x_{t+1} - x_t, g = grad f(x_t), and Delta(gamma) = grad f(x_t + gamma d) - g. The methods of a quantity
are called in this order: `at_start`, before anything is evaluated; at each point `arrived`, as the backward pass
delivers gradients, `absent` for gradients that did not arrive, and `at_point`; after all points `at_last`; `further`,
which may evaluate the loss again; and `at_end`, with the status of the step.
To measure something new, write a class here, add it to `quantities_of`, and its `Field` to `lsmooth.trace.layout`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.measure.coordinates import CoordinateReader, FollowedCoordinates
from lsmooth.measure.densities import DensityCounter
from lsmooth.measure.geometries import NormsInUse
from lsmooth.measure.norms import Kind, TensorNorms, differences, products_of
from lsmooth.measure.packed import Along
from lsmooth.measure.row import Row
from lsmooth.parallel.shards import held, local
from lsmooth.precision import largest_error
from lsmooth.replay.arrivals import taken_whole
from lsmooth.replay.evaluation import Replay
from lsmooth.trace.layout import Geometry

if TYPE_CHECKING:
    from lsmooth.loop.step import Step


@dataclass(frozen=True)
class Point:
    """A point of the segment at which the gradient is evaluated.

    Attributes:
        gamma: Position of the point: 0 at x_t, 1 at x_{t+1}.
        index: Index along the dimension `gamma` of the trace; None for a point that the trace does not keep there.
        endpoint: Whether the point is kept as x_{t+1}.
    """

    gamma: float
    index: int | None = None
    endpoint: bool = False

    @property
    def is_check(self) -> bool:
        """Whether the point is x_t, where a second evaluation is compared with training's own gradient."""
        return self.gamma == 0.0


class Quantity:
    """Base of measured quantities; every method does nothing by default."""

    def at_start(self, step: Step, row: Row) -> None:
        """Take the step, its gradient g and its ends; afterwards the parameters may be anywhere on the segment."""

    def arrived(self, point: Point, positions: Sequence[int], gradients: Sequence[Tensor], step: Step) -> None:
        """Take gradients of some parameters at a point; only the last quantity may overwrite them."""

    def absent(self, point: Point, position: int, first: Tensor) -> None:
        """Note that a parameter's gradient, `first` at x_t, did not arrive at a point, and counts as 0 there."""

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        """Fill in what is known at a point once its loss is known and all gradients have arrived."""

    def at_last(self, row: Row, step: Step) -> None:
        """Fill in what is known after the last point."""

    def further(self, replay: Replay, row: Row, step: Step) -> None:
        """Evaluate the loss at further positions of the quantity's own, after all points."""

    def at_end(self, well: Tensor, step: Step) -> None:
        """Learn whether the step was measured `well`, a bool scalar on the device."""

    def clear(self) -> None:
        """Forget the step in progress, which ended in an exception."""


class Losses(Quantity):
    """f(x_t), f(x_t + gamma d) and f(x_{t+1}), the learning rates, and a bound of the gradient's rounding."""

    def __init__(self) -> None:
        self._along: list[Tensor] = []

    def at_start(self, step: Step, row: Row) -> None:
        self._along = []
        row["loss"].copy_(step.loss)
        row.put_lr(step.lr)
        if step.foreign is not None:
            row["foreign_grad"].copy_(step.foreign)

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        if point.index is not None:
            self._along.append(loss)
        if point.endpoint:
            row["loss_next"].copy_(loss)

    def at_last(self, row: Row, step: Step) -> None:
        row["rounding_bound"].fill_(largest_error(step.dtypes, row.numbers.device))
        if self._along:
            torch.stack(self._along, out=row["loss_along"])
            self._along = []

    def clear(self) -> None:
        self._along = []


class GradientNoise(Quantity):
    """Standard deviation of the probes' gradients at x_t in the dual norm of each geometry; see `Probes.at_start`."""

    def __init__(self, geometries: Sequence[Geometry]) -> None:
        self._geometries = geometries

    def at_start(self, step: Step, row: Row) -> None:
        for geometry in self._geometries if step.noise is not None else ():
            assert step.noise is not None
            row[geometry.dataset("grad_noise")].copy_(step.noise[geometry.gradient])


class StepNorms(Quantity):
    """‖d‖ of each tensor in the norm of each geometry, and ⟨g, d⟩ of each tensor and in all.

    Args:
        geometries: The geometries to measure in.
        norms: Takes norms of displacements.
    """

    def __init__(self, geometries: Sequence[Geometry], norms: TensorNorms) -> None:
        self._geometries = geometries
        self._norms = norms

    def at_start(self, step: Step, row: Row) -> None:
        active, segment = step.active, step.segment
        along = [step.gradient.tensors[i] for i in active]
        live = segment.parameters_to_overwrite()
        self._norms.add(active, live, segment.start, along, consumed=True, any_range=True)
        found, slopes = self._norms.result_and_products()
        for geometry in self._geometries:
            row[geometry.dataset("step_norm")].copy_(found[geometry.displacement])
        slopes = slopes if step.scale is None else slopes / step.scale
        row["curvature/slope"].copy_(slopes)
        row["slope"].copy_(slopes.sum())

    def clear(self) -> None:
        self._norms.clear()


class WeightNorms(Quantity):
    """‖x_t‖2 of each tensor, and a bound of the distance of rounded points from the segment.

    Let u be half the machine epsilon of a tensor's dtype and m its smallest normal number. A point is computed as x_t +
    gamma d, or as x_{t+1} - (1 - gamma) d beyond the middle, in float32 or wider, and is rounded to the dtype. Each
    coordinate is then off by at most u (|x_j + gamma d_j| + m), where m covers subnormal numbers. If difference and
    product are computed in the same dtype, they add at most u |d_j| and u |gamma d_j|. In the 2-norm over n
    coordinates, this is at most u (‖x_t‖ + sqrt(n) m) plus a small multiple of u ‖d‖. As u is below 0.004 for every
    dtype, only the first term can come near 1 % of ‖gamma d‖.

    Args:
        parameters: The measured parameters.
        two_norms: Takes 2-norms.
    """

    def __init__(self, parameters: Sequence[Tensor], two_norms: TensorNorms) -> None:
        self._parameters = parameters
        self._norms = two_norms
        limits = [torch.finfo(p.dtype) for p in parameters]
        sizes = [local(p).numel() for p in parameters]
        least = [math.sqrt(size) * limit.smallest_normal for size, limit in zip(sizes, limits, strict=True)]
        self._half_eps, self._least = torch.tensor(
            [[limit.eps / 2 for limit in limits], least], dtype=two_norms.dtype, device=parameters[0].device
        )

    def at_start(self, step: Step, row: Row) -> None:
        moving = self._norms_of(step.active, step.segment.values_at_start())
        row["rounding"].copy_(torch.linalg.vector_norm((moving + self._least) * self._half_eps))
        row["weight_norm"].copy_(moving)
        still = sorted(set(range(len(self._parameters))) - set(step.active))
        if still:
            row["weight_norm"].add_(self._norms_of(still, [local(self._parameters[i]).detach() for i in still]))

    def _norms_of(self, positions: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
        self._norms.add(positions, tensors, [None] * len(positions))
        return self._norms.result()["l2"]

    def clear(self) -> None:
        self._norms.clear()


class Coordinates(Quantity):
    """g_j, d_j and grad_j f(x_t + gamma d) of the followed coordinates."""

    def __init__(self, reader: CoordinateReader) -> None:
        self._reader = reader
        # Parts of the row that the points of the dimension `gamma` are written to, and the endpoint.
        self._along: Sequence[Tensor] = ()
        self._next: Tensor | None = None

    def at_start(self, step: Step, row: Row) -> None:
        self._along = row["coordinate/grad_along"].unbind()
        if "coordinate/grad_next" in row:
            self._next = row["coordinate/grad_next"]
        grad, moved = row["coordinate/grad"], row["coordinate/displacement"]
        arrived = [(i, g) for i, g in enumerate(step.gradient.tensors) if g is not None]
        self._reader.read([i for i, _ in arrived], [g for _, g in arrived], grad)
        if step.scale is not None:
            grad.div_(step.scale)
        start = torch.zeros_like(moved)
        self._reader.read(step.active, step.segment.values_at_start(), start)
        self._reader.read(step.active, step.segment.values_at_stop(), moved)
        moved.sub_(start)

    def arrived(self, point: Point, positions: Sequence[int], gradients: Sequence[Tensor], step: Step) -> None:
        into = self._place(point)
        if into is not None:
            self._reader.read(positions, gradients, into)

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        into = self._place(point)
        if into is not None and step.scale is not None:
            into.div_(step.scale)
        if into is not None and self._next is not None and point.index is not None and point.endpoint:
            self._next.copy_(into)

    def _place(self, point: Point) -> Tensor | None:
        if point.index is not None:
            return self._along[point.index]
        return self._next if point.endpoint else None

    def at_end(self, well: Tensor, step: Step) -> None:
        self.clear()

    def clear(self) -> None:
        self._along, self._next = (), None


class Densities(Quantity):
    """Counts of all coordinates by gradient and local Lipschitz constant; see `DensityCounter`."""

    def __init__(self, counter: DensityCounter) -> None:
        self._counter = counter

    def at_start(self, step: Step, row: Row) -> None:
        devices = [parameter.device for parameter in step.segment.parameters]
        self._counter.begin(step.active, step.segment.start, step.segment.stop, devices)

    def arrived(self, point: Point, positions: Sequence[int], gradients: Sequence[Tensor], step: Step) -> None:
        if point.index is not None:
            for position, gradient in zip(positions, gradients, strict=True):
                self._counter.add(position, point.gamma, step.gradient.tensors[position], gradient)

    def absent(self, point: Point, position: int, first: Tensor) -> None:
        if point.index is not None:
            self._counter.add(position, point.gamma, first, None)

    def at_end(self, well: Tensor, step: Step) -> None:
        self._counter.end(well, step.scale)

    def clear(self) -> None:
        self._counter.clear()


class GradientChanges(Quantity):
    """‖g‖ and ‖Delta(gamma)‖ of each tensor in the dual norm of each geometry, and ⟨Delta(gamma), d⟩ of each.

    This must be the last quantity, since it overwrites gradients. At gamma = 0, where training's own gradient is
    evaluated a second time, ‖Delta(0)‖2 over all tensors is the error of a replay.

    Args:
        geometries: The geometries to measure in.
        norms: Takes norms of gradients.
        two_norms: Takes 2-norms.
    """

    def __init__(self, geometries: Sequence[Geometry], norms: TensorNorms, two_norms: TensorNorms) -> None:
        self._geometries = geometries
        self._norms = norms
        self._two_norms = two_norms
        # By position of each active parameter: d, or x_t and x_{t+1}.
        self._steps: dict[int, Along] = {}
        # Parts of norms and products at each point of the dimension `gamma`, and at the endpoint; still scaled.
        self._along: list[dict[str, Tensor]] = []
        self._next: dict[str, Tensor] | None = None

    def at_start(self, step: Step, row: Row) -> None:
        found = _unscaled(step.gradient.norms, step.scale)
        for geometry in self._geometries:
            row[geometry.dataset("grad_norm")].copy_(found[geometry.gradient])
        start, stop = step.segment.start, step.segment.stop
        steps: Sequence[Along] = list(zip(start, stop, strict=True))
        if start and taken_whole(sum(t.numel() * t.element_size() for t in start), step.segment.parameters[0].device):
            steps = differences(stop, start)
        self._steps = dict(zip(step.active, steps, strict=True))
        self._along, self._next = [], None

    def arrived(self, point: Point, positions: Sequence[int], gradients: Sequence[Tensor], step: Step) -> None:
        first = [step.gradient.tensors[i] for i in positions]
        if point.is_check:
            self._two_norms.add(positions, gradients, first, consumed=True)
        else:
            self._norms.add(positions, gradients, first, [self._steps.get(i) for i in positions], consumed=True)

    def absent(self, point: Point, position: int, first: Tensor) -> None:
        ends = self._steps.get(position)
        back = ends[::-1] if isinstance(ends, tuple) else None if ends is None else -ends
        self._norms_at(point).add([position], [first], [None], None if point.is_check else [back])

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        if point.is_check:
            found = _unscaled(self._two_norms.result(), step.scale)
            row["replay_error"].copy_(torch.linalg.vector_norm(found["l2"]))
            return
        parts = self._norms.parts()
        if point.index is not None:
            self._along.append(parts)
        if point.endpoint:
            self._next = parts

    def at_last(self, row: Row, step: Step) -> None:
        # All points in one operation, since on a GPU each launch costs the same.
        zeros = torch.zeros_like(row["weight_norm"])
        named = {name: [p.get(name, zeros) for p in self._along] for p in self._along for name in p}
        self._fill(row, step, {name: torch.stack(values) for name, values in named.items()}, "")
        if self._next is not None:
            self._fill(row, step, self._next, "_next")
        self._steps, self._along, self._next = {}, [], None

    def _fill(self, row: Row, step: Step, parts: Mapping[str, Tensor], suffix: str) -> None:
        for geometry in self._geometries:
            found = parts[geometry.gradient]
            row[geometry.dataset("grad_diff") + suffix].copy_(found if step.scale is None else found / step.scale)
        products = products_of(parts)
        row["curvature/change" + suffix].copy_(products if step.scale is None else products / step.scale)

    def _norms_at(self, point: Point) -> TensorNorms:
        return self._two_norms if point.is_check else self._norms

    def clear(self) -> None:
        self._norms.clear()
        self._two_norms.clear()
        self._steps, self._along, self._next = {}, [], None


def _unscaled(norms: dict[Kind, Tensor], scale: Tensor | None) -> dict[Kind, Tensor]:
    return norms if scale is None else {kind: norm / scale for kind, norm in norms.items()}


def quantities_of(
    parameters: Sequence[Tensor],
    geometries: Sequence[Geometry],
    followed: FollowedCoordinates,
    norms: NormsInUse,
    densities: DensityCounter | None,
) -> list[Quantity]:
    """Return the quantities that are measured at each step, in the order in which they are called.

    Args:
        parameters: The measured parameters.
        geometries: The geometries to measure in.
        followed: The followed coordinates.
        norms: Takes norms.
        densities: Counts all coordinates; None if they are not counted.
    """
    device = parameters[0].device
    found: list[Quantity] = [
        Losses(),
        GradientNoise(geometries),
        StepNorms(geometries, norms.displacements),
        WeightNorms(parameters, norms.two),
    ]
    if len(followed):
        found.append(Coordinates(CoordinateReader(followed, parameters, device, held)))
    if densities is not None:
        found.append(Densities(densities))
    # Norms come last, since they may overwrite gradients.
    return [*found, GradientChanges(geometries, norms.gradients, norms.two)]
