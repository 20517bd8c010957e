"""Which single coordinates of the parameters are followed through a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# On a GPU, tensors up to this many elements are read end to end: copying them costs less than a kernel for each.
_SMALL = 1 << 13


@dataclass(frozen=True)
class FollowedCoordinates:
    """Coordinates chosen once, before the first step, and followed from then on.

    Attributes:
        names: Label of each of the c coordinates, such as `encoder.weight[3, 17]`.
        owners: Position of the parameter tensor that each belongs to, int64 (c,), ascending.
        indices: Position in the flattened tensor, int64 (c,).
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

    The choice depends on `seed`, on the tensor's place among the parameters and on its size, and on nothing else; no
    global random state is touched.
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


class CoordinateReader:
    """Reads the followed coordinates out of tensors that arrive one after another, without waiting for the device.

    Args:
        coordinates: Which coordinates are followed.
        tensors: The parameter tensors, for their devices.
        device: Where the values are wanted.
        held: Given a tensor and positions in it, says which of these are in this process, and where (`Ranks.held`).
    """

    def __init__(
        self,
        coordinates: FollowedCoordinates,
        tensors: Sequence[Tensor],
        device: torch.device,
        held: Callable[[Tensor, NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> None:
        self._indices: dict[int, Tensor] = {}
        self._places: dict[int, slice | Tensor] = {}
        # Of small tensors that arrived together before, by their positions: indices in all of them end to end.
        self._joint: dict[tuple[int, ...], Tensor] = {}
        for position, tensor in enumerate(tensors):
            mine = np.flatnonzero(coordinates.owners == position)
            here, indices = held(tensor, coordinates.indices[mine])
            if len(here):
                self._indices[position] = torch.from_numpy(indices).to(tensor.device)
                if len(here) == len(mine):
                    self._places[position] = slice(int(mine[0]), int(mine[-1]) + 1)
                else:
                    self._places[position] = torch.from_numpy(mine[here]).to(device)

    def read(self, positions: Sequence[int], tensors: Sequence[Tensor], into: Tensor) -> None:
        """Copy the followed coordinates of the tensors at `positions` into their places in `into`, (c,)."""
        run: list[Tensor] = []
        begin = end = 0
        for position, values in self._values(
            {i: t for i, t in zip(positions, tensors, strict=True) if i in self._indices}
        ):
            place = self._places[position]
            if not isinstance(place, slice):
                into.index_copy_(0, place, values.to(into.device, into.dtype, non_blocking=True))
                continue
            # Neighbours go together.
            if run and (place.start != end or values.device != run[-1].device):
                into[begin:end].copy_(torch.cat(run), non_blocking=True)
                run = []
            if not run:
                begin = place.start
            run.append(values)
            end = place.stop
        if run:
            into[begin:end].copy_(torch.cat(run) if len(run) > 1 else run[0], non_blocking=True)

    def _values(self, tensors: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Yield the followed coordinates of each tensor, by position, as they are given."""
        together = {i: t.detach() for i, t in tensors.items() if t.numel() <= _SMALL and not t.is_cpu}
        found: dict[int, Tensor] = {}
        for device in {tensor.device for tensor in together.values()}:
            some = {i: t for i, t in together.items() if t.device == device}
            key = tuple(some)
            if key not in self._joint:
                starts = np.cumsum([0, *(t.numel() for t in some.values())]).tolist()
                self._joint[key] = torch.cat([self._indices[i] + starts[n] for n, i in enumerate(some)])
            values = torch.take(torch.cat([t.reshape(-1) for t in some.values()]), self._joint[key])
            found |= zip(some, values.split([len(self._indices[i]) for i in some]), strict=True)
        for position, tensor in tensors.items():
            if position in found:
                yield position, found[position]
            else:
                yield position, torch.take(tensor.detach(), self._indices[position])
