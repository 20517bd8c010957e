"""The line from x_t to x_{t+1}: remember its ends, move along it, and put the parameters back bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Segment:
    """The segment between the parameters before and after an optimizer step.

    It is made before the step, where it copies x_t, and learns x_{t+1} by `end()` after it. It holds two copies of
    the parameters: the parameters themselves are the point that moves.

    Args:
        parameters: The tensors that the step may change.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.start = _copies(self.parameters)
        self.stop: list[Tensor] = []
        self._at_stop = True

    def end(self) -> None:
        """Copy x_{t+1}, now that the step has been taken."""
        self.stop = _copies(self.parameters)

    @torch.no_grad()
    def move_to(self, gamma: float) -> None:
        """Set the parameters to x_t + gamma (x_{t+1} - x_t); exactly to the ends at gamma = 0 and 1."""
        self._at_stop = False
        if gamma == 0.0:
            torch._foreach_copy_(self.parameters, self.start)
        elif gamma == 1.0:
            torch._foreach_copy_(self.parameters, self.stop)
            self._at_stop = True
        else:
            for parameter, start, stop in zip(self.parameters, self.start, self.stop, strict=True):
                torch.lerp(start, stop, gamma, out=parameter)

    def put_back(self) -> None:
        """Set the parameters to x_{t+1}, bit for bit."""
        if not self._at_stop:
            self.move_to(1.0)


@torch.no_grad()
def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    copies = [torch.empty_like(tensor, requires_grad=False) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
