"""What is being trained and measured: a model, its optimizer, and the parameters that this steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError
from lsmooth.loop.step_hooks import can_be_hooked
from lsmooth.parallel.ranks import unwrapped


@dataclass(frozen=True)
class Subject:
    """What is being trained.

    Attributes:
        called: The model as the training loop calls it, wrapped or not.
        model: The module inside of it.
        optimizer: The optimizer that takes the steps.
        names: Names of the optimizer's parameters, in the model's order.
        parameters: These parameters.
        groups: Number of parameter groups of the optimizer.
    """

    called: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    groups: int

    @classmethod
    def of(cls, model: nn.Module, optimizer: Any) -> Subject:
        """Return what a model and an optimizer, wrapped or not, are.

        Raises:
            InvalidArgumentError: One of the two cannot be measured.
        """
        inside, optimizer = unwrapped(model), optimizer_inside(optimizer)
        names, parameters = measured_parameters(inside, optimizer)
        return cls(model, inside, optimizer, tuple(names), tuple(parameters), len(optimizer.param_groups))

    @property
    def device(self) -> torch.device:
        """Where the first parameter is, and numbers are kept."""
        return self.parameters[0].device

    @property
    def real(self) -> str:
        """What norms are kept in: "float64" where a parameter is, else "float32"."""
        return "float64" if any(p.dtype == torch.float64 for p in self.parameters) else "float32"

    def active(self) -> tuple[int, ...]:
        """Return the positions of the parameters that a step may change now."""
        return tuple(i for i, p in enumerate(self.parameters) if p.requires_grad or p.grad is not None)

    def companions(self) -> list[Tensor]:
        """Return the trained parameters, now, that other optimizers step, or that this one has gained since."""
        mine = set(self.parameters)
        held = (p for group in self.optimizer.param_groups for p in group["params"])
        trained = (p for p in (*self.model.parameters(), *held) if p.requires_grad and p not in mine)
        return list(dict.fromkeys(trained))

    def rates(self) -> tuple[float | Tensor, ...]:
        """Return the learning rate of each parameter group now; NaN for one that has none.

        Groups that the optimizer has gained since are left out.
        """
        rates = [group.get("lr") for group in self.optimizer.param_groups[: self.groups]]
        rates += [None] * (self.groups - len(rates))
        return tuple(
            math.nan if lr is None else lr.detach().clone() if isinstance(lr, Tensor) else float(lr) for lr in rates
        )

    def gained_parameters(self) -> bool:
        """Say whether the optimizer has gained parameters or groups since the recorder was attached."""
        ours = {id(parameter) for parameter in self.parameters}
        groups = self.optimizer.param_groups
        return len(groups) > self.groups or any(
            id(p) not in ours and is_measurable(p) for group in groups for p in group["params"]
        )


def optimizer_inside(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer that takes the steps: some (Accelerate's) hand them on to one that they hold."""
    inner = optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not can_be_hooked(inner):
        raise InvalidArgumentError(
            f"{type(optimizer).__name__} is no torch.optim.Optimizer, and no object with a step and param_groups like "
            "one; give the recorder the object whose step() the loop calls."
        )
    return inner  # type: ignore[no-any-return]


def is_measurable(parameter: Tensor) -> bool:
    """Say whether a parameter is measured: all are, but frozen ones of a dtype that has no gradient."""
    return parameter.requires_grad or parameter.is_floating_point()


def measured_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[str], list[Tensor]]:
    """Return names and tensors of the optimizer's parameters, in the model's order."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidArgumentError(
            "LBFGS evaluates the loss several times a step, which leaves no single step to measure; "
            "use an optimizer whose step takes no closure."
        )
    held = {
        p: f"optimizer.{g}.{i}"
        for g, group in enumerate(optimizer.param_groups)
        for i, p in enumerate(group["params"])
        if is_measurable(p)
    }
    if not any(p.requires_grad for p in held):
        raise InvalidArgumentError(
            "None of the optimizer's parameters requires a gradient; give it the parameters that are trained."
        )
    named = [(_plain_name(name), p) for name, p in model.named_parameters() if p in held]
    known = {p for _, p in named}
    named += [(name, p) for p, name in held.items() if p not in known]
    for name, parameter in named:
        if isinstance(parameter, nn.UninitializedParameter):
            raise InvalidArgumentError(f"{name} has no shape yet; run the model on a batch before it is recorded.")
        if parameter.is_complex():
            raise InvalidArgumentError(
                f"{name} is complex; train its real view (torch.view_as_real) to measure its smoothness."
            )
        if parameter.device.type == "meta":
            raise InvalidArgumentError(f"{name} is on the meta device; load or initialise the model first.")
        if not parameter.is_floating_point():
            raise InvalidArgumentError(f"{name} has dtype {parameter.dtype}, which has no gradient.")
    return [name for name, _ in named], [p for _, p in named]


def _plain_name(name: str) -> str:
    """Return a parameter's name without what torch.compile puts in front of it."""
    return name.replace("_orig_mod.", "")
