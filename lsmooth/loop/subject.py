"""What is being trained and measured: a model, its optimizer, and the parameters that this steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError, RecorderError
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
        companions: Trained parameters of the model that another optimizer steps.
        groups: Number of parameter groups of the optimizer.
    """

    called: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    companions: tuple[Tensor, ...]
    groups: int

    @classmethod
    def of(cls, model: nn.Module, optimizer: Any) -> Subject:
        """Return what a model and an optimizer, wrapped or not, are.

        Raises:
            InvalidArgumentError: One of the two cannot be measured.
        """
        inside, optimizer = unwrapped(model), optimizer_inside(optimizer)
        names, parameters = measured_parameters(inside, optimizer)
        mine = set(parameters)
        companions = tuple(p for p in inside.parameters() if p.requires_grad and p not in mine)
        return cls(model, inside, optimizer, tuple(names), tuple(parameters), companions, len(optimizer.param_groups))

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

    def rates(self) -> tuple[float | Tensor, ...]:
        """Return the learning rate of each parameter group now."""
        return tuple(
            lr.detach().clone() if isinstance(lr, Tensor) else float(lr)
            for lr in (group["lr"] for group in self.optimizer.param_groups)
        )

    def check_groups(self) -> None:
        """Refuse an optimizer that has gained parameters.

        Raises:
            RecorderError: It has.
        """
        ours = {id(parameter) for parameter in self.parameters}
        groups = self.optimizer.param_groups
        if len(groups) != self.groups or any(id(p) not in ours for group in groups for p in group["params"]):
            raise RecorderError(
                "The optimizer has gained parameters since the recorder was attached; close it and attach a new one, "
                "with a trace of its own."
            )


def optimizer_inside(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer that takes the steps: some (Accelerate's) hand them on to one that they hold."""
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_pre_hooks") or hasattr(inner, "optimizer"):
        if not hasattr(inner, "optimizer"):
            raise InvalidArgumentError(
                f"{type(optimizer).__name__} is no torch.optim.Optimizer, which tells a recorder of its steps; give "
                "the recorder the one that takes the steps."
            )
        inner = inner.optimizer
    return inner  # type: ignore[no-any-return]


def measured_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[str], list[Tensor]]:
    """Return names and tensors of the optimizer's parameters, in the model's order."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidArgumentError(
            "LBFGS evaluates the loss several times a step, which leaves no single step to measure; "
            "use an optimizer whose step takes no closure."
        )
    held = {
        p: f"optimizer.{g}.{i}" for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])
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
