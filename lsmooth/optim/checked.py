"""The base class of the optimizers here: it checks the hyperparameters of every group, of later ones too."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from lsmooth.errors import InvalidArgumentError, OptimizerError


class CheckedOptimizer(Optimizer):
    """An optimizer that checks the hyperparameters of every group, also of groups added later.

    A subclass checks one group in `_check` and updates all parameters in `_update`.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. Its hyperparameters and parameters are checked as those of the constructor are.

        Raises:
            InvalidArgumentError: A hyperparameter is out of range.
            OptimizerError: A parameter is complex.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
            for p in group["params"]:
                if torch.is_complex(p):
                    raise OptimizerError(
                        f"{type(self).__name__} does not support complex parameters (a sign of complex numbers is "
                        "not defined); hold real and imaginary part as two real parameters."
                    )
        except BaseException:
            # A refused group leaves the optimizer as it was.
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Groups of a checkpoint lack the hyperparameters that later versions added.
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient.

        Args:
            closure: Evaluates the model again and returns the loss.

        Raises:
            OptimizerError: A gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _check(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _update(self) -> None:
        raise NotImplementedError

    def _with_gradients(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters of a group that have a gradient, and their gradients."""
        params = [p for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params]
        if any(grad.layout != torch.strided for grad in grads):
            raise OptimizerError(
                f"{type(self).__name__} does not support sparse gradients; make the layer give dense ones "
                "(sparse=False)."
            )
        return params, grads


def check_lr(lr: float | Tensor) -> None:
    """Refuse a learning rate that is negative, or a tensor of several elements."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise InvalidArgumentError("Tensor lr must be 1-element.")
    _check_number("learning rate", lr)
    if not lr >= 0.0:
        raise InvalidArgumentError(f"Invalid learning rate: {lr}; it must be at least 0.")


def check_above_zero(kind: str, value: float) -> None:
    """Refuse a hyperparameter that is not above 0."""
    _check_number(kind, value)
    if not value > 0:
        raise InvalidArgumentError(f"Invalid {kind}: {value}; it must be above 0.")


def check_at_least_zero(kind: str, value: float) -> None:
    """Refuse a hyperparameter that is negative or NaN."""
    _check_number(kind, value)
    if not value >= 0.0:
        raise InvalidArgumentError(f"Invalid {kind}: {value}; it must be at least 0.")


def check_below_one(kind: str, value: float) -> None:
    """Refuse a hyperparameter outside of [0, 1)."""
    _check_number(kind, value)
    if not 0.0 <= value < 1.0:
        raise InvalidArgumentError(f"Invalid {kind}: {value}; it must be at least 0 and below 1.")


def _check_number(kind: str, value: Any) -> None:
    """Refuse a value that is no number, such as text from a settings file."""
    if not isinstance(value, (numbers.Real, Tensor)):
        raise InvalidArgumentError(f"Invalid {kind}: {value!r}; it must be a number.")
