"""The line from x_t to x_{t+1}: remember its ends, move along it, and put the parameters back bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsmooth.parallel.shards import local


class Segment:
    """The segment between the parameters before and after an optimizer step.

    `begin()` copies x_t before the step, `end()` x_{t+1} after it, into memory that is kept from one step to the next:
    two copies of the parameters, which themselves are the point that moves.

    Args:
        parameters: What the step may change, as the model has it; of DTensors, this process's shards are moved.

    Attributes:
        parameters: The tensors that are moved: those that the parameters stand on, without their graphs.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._owners = list(parameters)
        self.parameters = _memory_of(self._owners)
        self.start = [torch.empty_like(parameter, requires_grad=False) for parameter in self.parameters]
        self.stop = [torch.empty_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._at_stop = True

    def fits(self, parameters: Sequence[Tensor]) -> bool:
        """Say whether these tensors, too, can be moved with the memory that there is."""
        return len(parameters) == len(self.start) and all(
            copy.shape == p.shape and copy.stride() == p.stride() and copy.dtype == p.dtype and copy.device == p.device
            for copy, p in zip(self.start, map(local, parameters), strict=True)
        )

    @torch.no_grad()
    def begin(self, parameters: Sequence[Tensor]) -> None:
        """Copy x_t, the step being about to be taken."""
        self._owners = list(parameters)
        self.parameters = _memory_of(self._owners)
        self._at_stop = True
        if self.parameters:
            torch._foreach_copy_(self.start, self.parameters)

    @torch.no_grad()
    def end(self) -> None:
        """Copy x_{t+1}, now that the step has been taken."""
        # A step may give its parameters other memory (`p.data = …`) in place of writing to what they have.
        self.parameters = _memory_of(self._owners)
        if self.parameters:
            torch._foreach_copy_(self.stop, self.parameters)

    def parameters_to_overwrite(self) -> list[Tensor]:
        """Return the parameters, at x_{t+1}: live weights, which may be overwritten, and must be moved afterwards."""
        self.put_back()
        self._at_stop = False
        return self.parameters

    @torch.no_grad()
    def move_to(self, gamma: float) -> None:
        """Set the parameters to x_t + gamma (x_{t+1} - x_t); exactly to the ends at gamma = 0 and 1."""
        self._at_stop = False
        if gamma == 0.0:
            torch._foreach_copy_(self.parameters, self.start)
        elif gamma == 1.0:
            torch._foreach_copy_(self.parameters, self.stop)
            self._at_stop = True
        elif not any(parameter.is_cpu for parameter in self.parameters):
            # Two passes through memory in place of one, but a few kernels in place of one a tensor.
            torch._foreach_copy_(self.parameters, self.start)
            torch._foreach_lerp_(self.parameters, self.stop, gamma)
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
            torch._foreach_copy_(self.parameters, ends)

    def put_back(self) -> None:
        """Set the parameters to x_{t+1}, bit for bit."""
        if not self._at_stop:
            self.move_to(1.0)


def _memory_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [local(parameter).detach() for parameter in parameters]
