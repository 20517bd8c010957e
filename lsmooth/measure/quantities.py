"""The measured quantities: one small class each, which turns a step's gradients into numbers of its row.

Throughout, d = x_{t+1} - x_t, g = grad f(x_t), and Delta(gamma) = grad f(x_t + gamma d) - g. A quantity sees the step
before anything is evaluated (`at_start`), gradients as a backward pass delivers them (`arrived`), each point when all
of them are there (`at_point`), the loss when all points are done (`further`), and the step's judgement (`at_end`).
To measure something new, write a class here, add it to `quantities_of`, and its `Field` to `lsmooth.trace.layout`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.measure.coordinates import CoordinateReader, FollowedCoordinates
from lsmooth.measure.densities import DensityCounter
from lsmooth.measure.geometries import NormsInUse
from lsmooth.measure.norms import Kind, TensorNorms, piece_size
from lsmooth.measure.products import products_with_step
from lsmooth.measure.row import Row
from lsmooth.parallel.shards import held, local
from lsmooth.precision import accumulation_dtype
from lsmooth.replay.evaluation import Replay
from lsmooth.trace.layout import Geometry

if TYPE_CHECKING:
    from lsmooth.loop.step import Step


# Inner products take so large a share of all parameters at a time, but no fewer elements than pay for a call.
_PIECES = 64
_LEAST_PIECE = 1 << 10


@dataclass(frozen=True)
class Point:
    """A point of the segment at which the gradient is evaluated.

    Attributes:
        gamma: Its position: 0 at x_t, 1 at x_{t+1}.
        index: Its place along the dimension `gamma` of the trace; None for one that is not of it.
        endpoint: Whether it stands for x_{t+1}.
    """

    gamma: float
    index: int | None = None
    endpoint: bool = False

    @property
    def is_check(self) -> bool:
        """Whether it is x_t, where a second evaluation is compared with training's own."""
        return self.gamma == 0.0


class Quantity:
    """Something that is measured; does nothing by itself."""

    def at_start(self, step: Step, row: Row) -> None:
        """Take in the step, its gradient g and its ends; afterwards the parameters may be anywhere."""

    def arrived(self, point: Point, positions: Sequence[int], gradients: Sequence[Tensor], step: Step) -> None:
        """Take in gradients of some parameters at a point; only the last quantity may overwrite them."""

    def absent(self, point: Point, position: int, first: Tensor) -> None:
        """Take in that a parameter's gradient, `first` at x_t, did not arrive at a point, and counts as 0 there."""

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        """Fill in what is known at a point, all of whose gradients have arrived, and whose loss is given."""

    def further(self, replay: Replay, row: Row, step: Step) -> None:
        """Evaluate the loss at positions of its own, after all points."""

    def at_end(self, well: Tensor, step: Step) -> None:
        """Hear whether the step was measured `well`, a scalar on the device."""

    def clear(self) -> None:
        """Forget the step in progress, which ended in an exception."""


class Losses(Quantity):
    """f(x_t), f(x_t + gamma d) and f(x_{t+1}), with the learning rates that led there."""

    def at_start(self, step: Step, row: Row) -> None:
        row["loss"].copy_(step.loss)
        row.put_lr(step.lr)
        if step.foreign is not None:
            row["foreign_grad"].copy_(step.foreign)

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        if point.index is not None:
            row["loss_along"][point.index].copy_(loss)
        if point.endpoint:
            row["loss_next"].copy_(loss)


class GradientNoise(Quantity):
    """Standard deviation of the probes' gradients at x_t in the dual norm of each geometry; see `Probes.at_start`."""

    def __init__(self, geometries: Sequence[Geometry]) -> None:
        self._geometries = geometries

    def at_start(self, step: Step, row: Row) -> None:
        for geometry in self._geometries if step.noise is not None else ():
            assert step.noise is not None
            row[geometry.dataset("grad_noise")].copy_(step.noise[geometry.gradient])


class StepNorms(Quantity):
    """‖d‖ of each tensor in the norm of each geometry, and ⟨g, d⟩.

    Args:
        geometries: Which norms.
        norms: Takes norms of displacements.
    """

    def __init__(self, geometries: Sequence[Geometry], norms: TensorNorms) -> None:
        self._geometries = geometries
        self._norms = norms

    def at_start(self, step: Step, row: Row) -> None:
        active, segment = step.active, step.segment
        along = [step.gradient.tensors[i] for i in active]
        self._norms.add(active, segment.parameters_to_overwrite(), segment.start, along, consumed=True)
        found, slope = self._norms.result_and_product()
        for geometry in self._geometries:
            row[geometry.dataset("step_norm")].copy_(found[geometry.displacement])
        row["slope"].copy_(slope if step.scale is None else slope / step.scale)

    def clear(self) -> None:
        self._norms.clear()


class WeightNorms(Quantity):
    """‖x_t‖2 of each tensor, and by how much rounding may put points off the segment.

    Let u be half the machine epsilon of a tensor's dtype and m its smallest normal number. A point is computed as
    x_t + gamma d, or x_{t+1} - (1 - gamma) d beyond the middle, in float32 or wider, and rounded to the dtype: each
    coordinate is then off by at most u (|x_j + gamma d_j| + m), m for numbers that are not normal, and by u |d_j| and
    u |gamma d_j| from the difference and the product where these are computed in the same dtype. In the 2-norm, over n
    coordinates, that is at most u (‖x_t‖ + sqrt(n) m) and a small multiple of u ‖d‖: with u below 0.004 for every
    dtype, only the first can come near 1 % of ‖gamma d‖.

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
        moving = self._norms_of(step.active, step.segment.start)
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
        self._row: Row | None = None

    def at_start(self, step: Step, row: Row) -> None:
        self._row = row
        grad, moved = row["coordinate/grad"], row["coordinate/displacement"]
        arrived = [(i, g) for i, g in enumerate(step.gradient.tensors) if g is not None]
        self._reader.read([i for i, _ in arrived], [g for _, g in arrived], grad)
        if step.scale is not None:
            grad.div_(step.scale)
        start = torch.zeros_like(moved)
        self._reader.read(step.active, step.segment.start, start)
        self._reader.read(step.active, step.segment.stop, moved)
        moved.sub_(start)

    def arrived(self, point: Point, positions: Sequence[int], gradients: Sequence[Tensor], step: Step) -> None:
        into = self._place(point)
        if into is not None:
            self._reader.read(positions, gradients, into)

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        into = self._place(point)
        if into is not None and step.scale is not None:
            into.div_(step.scale)
        if into is not None and point.index is not None and point.endpoint:
            row["coordinate/grad_next"].copy_(into)

    def _place(self, point: Point) -> Tensor | None:
        assert self._row is not None
        if point.index is not None:
            return self._row["coordinate/grad_along"][point.index]
        return self._row["coordinate/grad_next"] if point.endpoint else None

    def at_end(self, well: Tensor, step: Step) -> None:
        self._row = None

    def clear(self) -> None:
        self._row = None


class Densities(Quantity):
    """All coordinates, counted by gradient and by local Lipschitz constant; see `DensityCounter`."""

    def __init__(self, counter: DensityCounter) -> None:
        self._counter = counter

    def at_start(self, step: Step, row: Row) -> None:
        self._counter.begin(step.active, step.segment.start, step.segment.stop)

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


class Curvature(Quantity):
    """⟨g, d⟩, ⟨Delta(gamma), d⟩ and ⟨Delta(1), d⟩ of each tensor, of which curvature along the step is made.

    Args:
        parameters: The measured parameters, of whose size temporary memory is a small share.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        total = sum(local(p).numel() for p in parameters)
        self._piece = min(piece_size(parameters[0].device), max(_LEAST_PIECE, total // _PIECES))
        self._zero = torch.zeros((), dtype=accumulation_dtype(parameters[0].device), device=parameters[0].device)
        # By position: x_t and x_{t+1}.
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}
        self._row: Row | None = None

    def at_start(self, step: Step, row: Row) -> None:
        self._row = row
        ends = zip(step.segment.start, step.segment.stop, strict=True)
        self._ends = dict(zip(step.active, ends, strict=True))
        arrived = [(i, g) for i, g in enumerate(step.gradient.tensors) if g is not None]
        self._put(row["curvature/slope"], [i for i, _ in arrived], [g for _, g in arrived], [None] * len(arrived))
        if step.scale is not None:
            row["curvature/slope"].div_(step.scale)

    def arrived(self, point: Point, positions: Sequence[int], gradients: Sequence[Tensor], step: Step) -> None:
        into = self._place(point)
        if into is not None:
            self._put(into, positions, gradients, [step.gradient.tensors[i] for i in positions])

    def absent(self, point: Point, position: int, first: Tensor) -> None:
        into = self._place(point)
        if into is not None and position in self._ends:
            self._put(into, [position], [first.neg()], [None])

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        into = self._place(point)
        if into is not None and step.scale is not None:
            into.div_(step.scale)
        if into is not None and point.index is not None and point.endpoint:
            row["curvature/change_next"].copy_(into)

    def _put(
        self, into: Tensor, positions: Sequence[int], gradients: Sequence[Tensor], minus: Sequence[Tensor | None]
    ) -> None:
        """Put the products of gradients, less others, with the step into their places, (p,)."""
        moving = [place for place, position in enumerate(positions) if position in self._ends]
        if not moving:
            return
        ends = [self._ends[positions[place]] for place in moving]
        products = products_with_step(
            [gradients[place] for place in moving],
            [minus[place] for place in moving],
            [start for start, _ in ends],
            [stop for _, stop in ends],
            self._piece,
        )
        found: list[Tensor] = [self._zero] * len(into)
        for place, product in zip(moving, products, strict=True):
            found[positions[place]] = product.to(self._zero.device, self._zero.dtype, non_blocking=True)
        into.add_(torch.stack(found))

    def _place(self, point: Point) -> Tensor | None:
        assert self._row is not None
        if point.index is not None:
            return self._row["curvature/change"][point.index]
        return self._row["curvature/change_next"] if point.endpoint else None

    def at_end(self, well: Tensor, step: Step) -> None:
        self.clear()

    def clear(self) -> None:
        self._row, self._ends = None, {}


class GradientChanges(Quantity):
    """‖g‖ and ‖Delta(gamma)‖ of each tensor in the dual norm of each geometry; the last quantity, for it overwrites.

    At gamma = 0, where training's own gradient is evaluated a second time, ‖Delta(0)‖2 over all tensors is the error
    of a replay.

    Args:
        geometries: Which norms.
        norms: Takes norms of gradients.
        two_norms: Takes 2-norms.
    """

    def __init__(self, geometries: Sequence[Geometry], norms: TensorNorms, two_norms: TensorNorms) -> None:
        self._geometries = geometries
        self._norms = norms
        self._two_norms = two_norms

    def at_start(self, step: Step, row: Row) -> None:
        found = _unscaled(step.gradient.norms, step.scale)
        for geometry in self._geometries:
            row[geometry.dataset("grad_norm")].copy_(found[geometry.gradient])

    def arrived(self, point: Point, positions: Sequence[int], gradients: Sequence[Tensor], step: Step) -> None:
        first = [step.gradient.tensors[i] for i in positions]
        self._norms_at(point).add(positions, gradients, first, consumed=True)

    def absent(self, point: Point, position: int, first: Tensor) -> None:
        self._norms_at(point).add([position], [first], [None])

    def at_point(self, point: Point, loss: Tensor, row: Row, step: Step) -> None:
        found = _unscaled(self._norms_at(point).result(), step.scale)
        if point.is_check:
            row["replay_error"].copy_(torch.linalg.vector_norm(found["l2"]))
            return
        for geometry in self._geometries:
            if point.index is not None:
                row[geometry.dataset("grad_diff")][point.index].copy_(found[geometry.gradient])
            if point.endpoint:
                row[geometry.dataset("grad_diff_next")].copy_(found[geometry.gradient])

    def _norms_at(self, point: Point) -> TensorNorms:
        return self._two_norms if point.is_check else self._norms

    def clear(self) -> None:
        self._norms.clear()
        self._two_norms.clear()


def _unscaled(norms: dict[Kind, Tensor], scale: Tensor | None) -> dict[Kind, Tensor]:
    return norms if scale is None else {kind: norm / scale for kind, norm in norms.items()}


def quantities_of(
    parameters: Sequence[Tensor],
    geometries: Sequence[Geometry],
    followed: FollowedCoordinates,
    norms: NormsInUse,
    densities: DensityCounter | None,
) -> list[Quantity]:
    """Return what is measured at each step, in the order in which the quantities see it.

    Args:
        parameters: The measured parameters.
        geometries: The geometries to measure in.
        followed: The followed coordinates.
        norms: What takes norms.
        densities: Counts all coordinates; None where they are not counted.
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
    found.append(Curvature(parameters))
    # Norms come last, since they may overwrite gradients.
    return [*found, GradientChanges(geometries, norms.gradients, norms.two)]
