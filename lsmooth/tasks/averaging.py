"""The mean of a model's weights over the late steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


class AveragingState(TypedDict):
    """What a checkpoint holds of `LateAverage`; `weights` is empty before averaging starts."""

    losses: Sequence[float]
    steps: int
    weights: Mapping[str, Tensor]


def has_stopped_improving(losses: Sequence[float], interval: int) -> bool:
    """Return whether the last validation loss is above the best of those more than `interval` checks before it."""
    *before, last = losses
    return len(before) > interval and last > min(before[:-interval])


class LateAverage(Generic[M]):
    """The mean of a model's weights over the steps since validation stopped improving.

        T = the first check t with loss_t > min(loss_1, ..., loss_{t-n-1})
        mean_k = (x_{T+1} + ... + x_{T+k}) / k

    Args:
        model: The model that is trained; it is only read.
        twin: Makes a model of the same form, which holds the mean.
        interval: n, in checks.

    Attributes:
        started: Whether the next step counts.
        mean: A model with the mean weights, in evaluation mode; None before the first step that counts.

    Source: Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models", ICLR 2018, Section 3, with the
    trigger as their published code has it (NT-ASGD). Theirs averages the steps of SGD; the mean does not depend on
    the optimizer.
    """

    def __init__(self, model: nn.Module, twin: Callable[[], M], interval: int) -> None:
        self._model = model
        self._twin = twin
        self._interval = interval
        self._losses: list[float] = []
        self.started = False
        self._steps = 0
        self.mean: M | None = None
        self._average = get_swa_multi_avg_fn()

    def check(self, loss: float) -> None:
        """Add a validation loss; where it stopped improving, averaging starts with the next step."""
        if not self.started:
            self._losses.append(loss if math.isfinite(loss) else math.inf)
            self.started = has_stopped_improving(self._losses, self._interval)

    def after_step(self) -> None:
        """Add the weights after a step to the mean, once averaging has started."""
        if not self.started:
            return
        if self.mean is None:
            self.mean = self._twin().eval()
            self.mean.load_state_dict(self._model.state_dict())
        else:
            with torch.no_grad():
                self._average(list(self.mean.parameters()), list(self._model.parameters()), self._steps)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return losses and mean, in the form of `AveragingState`."""
        weights = {} if self.mean is None else self.mean.state_dict()
        return {"losses": list(self._losses), "steps": self._steps, "weights": weights}

    def load_state_dict(self, state: AveragingState) -> None:
        """Go on from where `state_dict` was taken."""
        self._losses = list(state["losses"])
        self.started = bool(self._losses) and has_stopped_improving(self._losses, self._interval)
        self._steps = state["steps"]
        self.mean = None
        if state["weights"]:
            self.mean = self._twin().eval()
            self.mean.load_state_dict(state["weights"])
