"""The line from x_t to x_{t+1}: remember its ends, move along it, and put the parameters back bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsmooth.parallel.shards import local
from lsmooth.replay.arrivals import taken_whole
from lsmooth.replay.parking import in_pieces, parked_room


class Segment:
    """The segment between the parameters before and after an optimizer step.

    `begin()` copies x_t before the step, `end()` x_{t+1} after it, into memory that is kept from one step to the next:
    two copies of the parameters, which themselves are the point that moves.

    Args:
        parameters: What the step may change, as the model has it; of DTensors, this process's shards are moved.
        offload: Have both copies wait in the host's memory, unless the parameters are few or lie there themselves.

    Attributes:
        parameters: The tensors that are moved: those that the parameters stand on, without their graphs.
        start: x_t; where it is parked, `lsmooth.replay.parking.brought` alone may read it.
        stop: x_{t+1}, likewise.
    """

    def __init__(self, parameters: Sequence[Tensor], *, offload: bool = False) -> None:
        self._owners = list(parameters)
        self.parameters = _memory_of(self._owners)
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.parameters)
        self._parked = offload and any(not p.is_cpu and not taken_whole(size, p.device) for p in self.parameters)
        room = parked_room if self._parked else _room
        self.start = [room(parameter) for parameter in self.parameters]
        self.stop = [room(parameter) for parameter in self.parameters]
        # Where the host's memory is pinned, copies wait for nothing.
        self._at_once = all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters)
        self._at_stop = True

    def fits(self, parameters: Sequence[Tensor]) -> bool:
        """Say whether these tensors, too, can be moved with the memory that there is."""
        return len(parameters) == len(self.start) and all(
            copy.shape == p.shape
            and copy.stride() == p.stride()
            and copy.dtype == p.dtype
            and before.device == p.device
            for copy, before, p in zip(self.start, self.parameters, map(local, parameters), strict=True)
        )

    @torch.no_grad()
    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Copy x_t, the step being about to be taken."""
        self._owners = list(parameters)
        self.parameters = _memory_of(self._owners)
        self._at_stop = True
        if self.parameters:
            self._copy(self.start, self.parameters)

    @torch.no_grad()
    def end(self) -> None:
        """Copy x_{t+1}, now that the step has been taken."""
        # A step may give its parameters other memory (`p.data = …`) in place of writing to what they have.
        self.parameters = _memory_of(self._owners)
        if self.parameters:
            self._copy(self.stop, self.parameters)

    def parameters_to_overwrite(self) -> list[Tensor]:
        """Return the parameters, at x_{t+1}: live weights, which may be overwritten, and must be moved afterwards."""
        self.put_back()
        self._at_stop = False
        return self.parameters

    def values_at_start(self) -> Sequence[Tensor]:
        """Return x_t on the parameters' devices: where it is parked, the parameters, which are moved there."""
        if not self._parked:
            return self.start
        self.move_to(0.0)
        return self.parameters

    def values_at_stop(self) -> Sequence[Tensor]:
        """Return x_{t+1} on the parameters' devices: where it is parked, the parameters, which are put back there."""
        if not self._parked:
            return self.stop
        self.put_back()
        return self.parameters

    @torch.no_grad()
    def move_to(self, gamma: float) -> None:
        """Set the parameters to x_t + gamma (x_{t+1} - x_t); exactly to the ends at gamma = 0 and 1."""
        self._at_stop = False
        if gamma == 0.0:
            self._copy(self.parameters, self.start)
        elif gamma == 1.0:
            self._copy(self.parameters, self.stop)
            self._at_stop = True
        elif not any(parameter.is_cpu for parameter in self.parameters):
            # Two passes through memory in place of one, but a few kernels in place of one a tensor.
            self._copy(self.parameters, self.start)
            for some, ends in in_pieces(self.parameters, self.stop):
                torch._foreach_lerp_(some, ends, gamma)
        else:
            for parameter, start, stop in zip(self.parameters, self.start, self.stop, strict=True):
                torch.lerp(start, stop, gamma, out=parameter)

    @torch.no_grad()
    def move_part(self, places: Sequence[int]) -> None:
        """Set the parameters at some places to x_{t+1}, and all others to x_t."""
        self._at_stop = False
        chosen = set(places)
        ends = [(self.stop if place in chosen else self.start)[place] for place in range(len(self.parameters))]
        if ends:
            self._copy(self.parameters, ends)

    def put_back(self) -> None:
        """Set the parameters to x_{t+1}, bit for bit."""
        if not self._at_stop:
            self.move_to(1.0)

    def _copy(self, into: list[Tensor], values: list[Tensor]) -> None:
        torch._foreach_copy_(into, values, non_blocking=self._at_once)


def _room(parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter, requires_grad=False)


def _memory_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [local(parameter).detach() for parameter in parameters]
