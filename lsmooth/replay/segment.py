"""The segment from x_t to x_{t+1}: copies its ends, moves parameters along it, and puts them back bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsmooth.parallel.shards import local
from lsmooth.replay.arrivals import taken_whole
from lsmooth.replay.parking import in_pieces, parked_room


class Segment:
    """The segment between the parameters before and after an optimizer step.

    `begin()` copies x_t before the step, and `end()` copies x_{t+1} after it. The memory, two copies of the parameters,
    is kept from one step to the next. The parameters themselves are the moving point.

    Args:
        parameters: The model's parameters that the step may change; of DTensors, this process's shards are moved.
        offload: Whether both copies are kept in the host's memory, except for small models and parameters on the CPU.

    Attributes:
        parameters: The tensors that are moved: the parameters' local parts, detached.
        start: x_t, in the order of `parameters`; if offloaded, only `lsmooth.replay.parking.brought` may read it.
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
        # Copies to and from pinned memory need not be waited for.
        self._at_once = all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters)
        self._at_stop = True

    def fits(self, parameters: Sequence[Tensor]) -> bool:
        """Say whether the memory at hand fits these parameters."""
        return len(parameters) == len(self.start) and all(
            copy.shape == p.shape
            and copy.stride() == p.stride()
            and copy.dtype == p.dtype
            and before.device == p.device
            for copy, before, p in zip(self.start, self.parameters, map(local, parameters), strict=True)
        )

    @torch.no_grad()
    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Copy x_t, just before the step."""
        self._owners = list(parameters)
        self.parameters = _memory_of(self._owners)
        self._at_stop = True
        if self.parameters:
            self._copy(self.start, self.parameters)

    @torch.no_grad()
    def end(self) -> None:
        """Copy x_{t+1}, just after the step."""
        # A step may give its parameters new memory (`p.data = …`).
        self.parameters = _memory_of(self._owners)
        if self.parameters:
            self._copy(self.stop, self.parameters)

    def parameters_to_overwrite(self) -> list[Tensor]:
        """Return the live parameters, set to x_{t+1}, as memory that may be overwritten until the next move."""
        self.put_back()
        self._at_stop = False
        return self.parameters

    def values_at_start(self) -> Sequence[Tensor]:
        """Return x_t on the parameters' devices; if offloaded, move the parameters to x_t and return these."""
        if not self._parked:
            return self.start
        self.move_to(0.0)
        return self.parameters

    def values_at_stop(self) -> Sequence[Tensor]:
        """Return x_{t+1} on the parameters' devices; if offloaded, put the parameters back and return these."""
        if not self._parked:
            return self.stop
        self.put_back()
        return self.parameters

    @torch.no_grad()
    def move_to(self, gamma: float) -> None:
        """Set the parameters to x_t + gamma (x_{t+1} - x_t); bit for bit to the ends at gamma = 0 and 1."""
        self._at_stop = False
        if gamma == 0.0:
            self._copy(self.parameters, self.start)
        elif gamma == 1.0:
            self._copy(self.parameters, self.stop)
            self._at_stop = True
        elif not any(parameter.is_cpu for parameter in self.parameters):
            # On a GPU, a few kernels for all tensors cost less than one kernel a tensor, in spite of a second pass.
            self._copy(self.parameters, self.start)
            for some, ends in in_pieces(self.parameters, self.stop):
                torch._foreach_lerp_(some, ends, gamma)
        else:
            for parameter, start, stop in zip(self.parameters, self.start, self.stop, strict=True):
                torch.lerp(start, stop, gamma, out=parameter)

    @torch.no_grad()
    def move_part(self, places: Sequence[int]) -> None:
        """Set the parameters at `places` to x_{t+1}, and all others to x_t."""
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
