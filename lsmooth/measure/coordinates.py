"""Chooses the coordinates that are followed through a run, and reads them out of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsmooth.replay.arrivals import taken_whole

# On a GPU, tensors up to this many elements are first copied end to end, which costs less than a kernel for each
# tensor. So are all tensors of a small model.
_SMALL = 1 << 13
# Most sets of tensors whose plan is remembered.
_MOST_PLANS = 1 << 10


@dataclass(frozen=True)
class FollowedCoordinates:
    """Coordinates chosen once, before the first step, and followed from then on.

    Attributes:
        names: Label of each of the c coordinates, such as `encoder.weight[3, 17]`.
        owners: Position of the parameter tensor of each coordinate, int64 (c,), ascending.
        indices: Index of each coordinate in the flattened tensor, int64 (c,).
    """

    names: tuple[str, ...]
    owners: NDArray[np.int64]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)


def choose_coordinates(
    names: Sequence[str], shapes: Sequence[Sequence[int]], count: int, seed: int
) -> FollowedCoordinates:
    """Choose `count` coordinates of each parameter tensor (all of a smaller one), uniformly and without repetition.

    The choice depends only on `seed`, on the tensor's position among the parameters and on its size. No global random
    state is used.

    Args:
        names: Names of the parameter tensors.
        shapes: Their shapes.
        count: Number of coordinates to choose in each tensor.
        seed: Seed of the choice.
    """
    labels: list[str] = []
    owners: list[int] = []
    indices: list[int] = []
    for position, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        size = int(np.prod(shape, dtype=np.int64))
        generator = np.random.default_rng([seed, position])
        chosen = np.sort(generator.choice(size, size=min(count, size), replace=False, shuffle=False))
        for index in chosen.tolist():
            place = ", ".join(str(int(i)) for i in np.unravel_index(index, tuple(shape))) if len(shape) else ""
            labels.append(f"{name}[{place}]")
            owners.append(position)
            indices.append(index)
    return FollowedCoordinates(tuple(labels), np.array(owners, dtype=np.int64), np.array(indices, dtype=np.int64))


@dataclass(frozen=True)
class _Plan:
    """How to read the followed coordinates of some tensors on one device.

    Attributes:
        together: Places, in the list of tensors, of tensors that are copied end to end before they are read.
        slots: Memory that each of these is copied to, in its shape.
        flat: All slots as one flat tensor.
        joint: Indices of the coordinates in `flat`; None without tensors in `together`.
        alone: Places of the other tensors, each with the indices of its coordinates.
        places: Places in the result of the values of `together` and then of `alone`.
    """

    together: tuple[int, ...]
    slots: list[Tensor]
    flat: Tensor
    joint: Tensor | None
    alone: tuple[tuple[int, Tensor], ...]
    places: slice | Tensor

    def values(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the values of the followed coordinates, in the order of `places`."""
        found = [torch.take(tensors[place], indices) for place, indices in self.alone]
        if self.joint is not None:
            torch._foreach_copy_(self.slots, [tensors[place] for place in self.together])
            found.insert(0, torch.take(self.flat, self.joint))
        return torch.cat(found) if len(found) > 1 else found[0]


class CoordinateReader:
    """Reads the followed coordinates out of tensors that arrive one after another, without waiting for the device.

    Args:
        coordinates: The followed coordinates.
        tensors: The parameter tensors, which give sizes and devices.
        device: Device on which the values are wanted.
        held: Given a tensor and indices in it, says which of these are in this process, and where
            (`lsmooth.parallel.shards.held`).
    """

    def __init__(
        self,
        coordinates: FollowedCoordinates,
        tensors: Sequence[Tensor],
        device: torch.device,
        held: Callable[[Tensor, NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> None:
        # By position of each tensor with followed coordinates: their indices in it, and their places in the result.
        # They are moved to their devices here, once, since that waits for the device.
        self._indices: dict[int, Tensor] = {}
        self._places: dict[int, Tensor] = {}
        self._numbers: dict[int, NDArray[np.int64]] = {}
        for position, tensor in enumerate(tensors):
            mine = np.flatnonzero(coordinates.owners == position)
            here, indices = held(tensor, coordinates.indices[mine])
            if len(here):
                self._indices[position] = torch.from_numpy(indices).to(tensor.device)
                self._places[position] = torch.from_numpy(mine[here]).to(device)
                self._numbers[position] = mine[here]
        sizes = {t.device: sum(o.numel() * o.element_size() for o in tensors if o.device == t.device) for t in tensors}
        self._small = {d: math.inf if taken_whole(size, d) else _SMALL for d, size in sizes.items()}
        # Memory that tensors are copied to, by device and dtype, shared by all plans.
        self._memory: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        # Plans by the positions that arrive together, which are the same from step to step.
        self._plans: dict[tuple[int, ...], list[_Plan]] = {}

    @torch.no_grad()
    def read(self, positions: Sequence[int], tensors: Sequence[Tensor], into: Tensor) -> None:
        """Copy the followed coordinates of the tensors at `positions` into their places in `into`, (c,)."""
        key = tuple(positions)
        if key not in self._plans:
            if len(self._plans) == _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = self._planned(positions, tensors)
        for plan in self._plans[key]:
            values = plan.values(tensors)
            if isinstance(plan.places, slice):
                part = into if len(values) == len(into) else into[plan.places]
                part.copy_(values, non_blocking=True)
            else:
                into.index_copy_(0, plan.places, values.to(into.device, into.dtype, non_blocking=True))

    def _planned(self, positions: Sequence[int], tensors: Sequence[Tensor]) -> list[_Plan]:
        """Return the plans to read tensors that arrive together, one for each device."""
        plans = []
        followed = [place for place, position in enumerate(positions) if position in self._indices]
        for device in dict.fromkeys(tensors[place].device for place in followed):
            here = [place for place in followed if tensors[place].device == device]
            together = [p for p in here if device.type != "cpu" and tensors[p].numel() <= self._small[device]]
            alone = [place for place in here if place not in together]
            joint, start = [], 0
            for place in together:
                joint.append(self._indices[positions[place]] + start)
                start += tensors[place].numel()
            order = [positions[place] for place in together + alone]
            numbers = np.concatenate([self._numbers[position] for position in order])
            plans.append(
                _Plan(
                    tuple(together),
                    *self._slots([tensors[place] for place in together], device),
                    torch.cat(joint) if joint else None,
                    tuple((place, self._indices[positions[place]]) for place in alone),
                    slice(int(numbers[0]), int(numbers[-1]) + 1)
                    if (np.diff(numbers) == 1).all()
                    else torch.cat([self._places[position] for position in order]),
                )
            )
        return plans

    def _slots(self, tensors: Sequence[Tensor], device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Return memory to copy tensors to end to end: a view for each in its shape, and all as one flat tensor."""
        sizes = [tensor.numel() for tensor in tensors]
        key = device, tensors[0].dtype if tensors else torch.float32
        if key not in self._memory or len(self._memory[key]) < sum(sizes):
            self._memory[key] = torch.empty(sum(sizes), dtype=key[1], device=device)
        flat = self._memory[key][: sum(sizes)]
        return [part.view(tensor.shape) for part, tensor in zip(flat.split(sizes), tensors, strict=True)], flat
