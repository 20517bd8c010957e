"""The model being trained, its optimizers, and the parameters that the optimizers step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError
from lsmooth.loop.step_hooks import can_be_hooked
from lsmooth.parallel.ranks import unwrapped
from lsmooth.parallel.shards import is_sharded


@dataclass(frozen=True)
class Subject:
    """The model, its optimizers and their parameters.

    Attributes:
        called: The model as the training loop calls it, possibly wrapped (DistributedDataParallel, torch.compile).
        model: The module inside the wrappers.
        optimizers: The optimizers that take each step together; usually one.
        names: Names of the measured parameters, in the model's order.
        parameters: The measured parameters, in the same order.
        group_counts: Number of parameter groups of each optimizer.
        shards: The model's sharded parameters by name, in whose places `fully_shard` puts gathered ones for a while.
    """

    called: nn.Module
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    names: tuple[str, ...]
    parameters: tuple[Tensor, ...]
    group_counts: tuple[int, ...]
    shards: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, optimizer: Any) -> Subject:
        """Return the subject of a model and of one or several optimizers; all of them may be wrapped.

        Raises:
            InvalidArgumentError: One of them cannot be measured.
        """
        inside, optimizers = unwrapped(model), optimizers_inside(optimizer)
        names, parameters = measured_parameters(inside, optimizers)
        counts = tuple(len(one.param_groups) for one in optimizers)
        shards = {name: p for name, p in inside.named_parameters() if is_sharded(p)}
        return cls(model, inside, optimizers, tuple(names), tuple(parameters), counts, shards)

    @property
    def optimizer_name(self) -> str:
        """Class names of the optimizers, such as "Muon + AdamW"."""
        return " + ".join(type(optimizer).__name__ for optimizer in self.optimizers)

    @property
    def groups(self) -> int:
        """Number of parameter groups of all optimizers together."""
        return sum(self.group_counts)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter; measured numbers are kept there."""
        return self.parameters[0].device

    @property
    def real(self) -> str:
        """Dtype in which the trace keeps norms: "float64" if any parameter is float64, else "float32"."""
        return "float64" if any(p.dtype == torch.float64 for p in self.parameters) else "float32"

    def active(self) -> tuple[int, ...]:
        """Return the positions of the parameters that the next step may change."""
        return tuple(i for i, p in enumerate(self.parameters) if p.requires_grad or p.grad is not None)

    def companions(self) -> list[Tensor]:
        """Return trained parameters that are not measured.

        Other optimizers step them, or these optimizers gained them after the recorder was attached.
        """
        mine = set(self.parameters)
        held = (p for optimizer in self.optimizers for p in parameters_of(optimizer))
        own = (self.shards.get(name, p) for name, p in self.model.named_parameters())
        trained = (p for p in (*own, *held) if p.requires_grad and p not in mine)
        return list(dict.fromkeys(trained))

    def trained(self) -> list[Tensor]:
        """Return the parameters that a step may change, and their companions, which a recorder puts back."""
        return [*self.parameters, *self.companions()]

    def rates(self) -> tuple[float | Tensor, ...]:
        """Return the present learning rate of each parameter group; NaN for a group without a single one.

        Groups that an optimizer gained after the recorder was attached are left out.
        """
        rates: list[Any] = []
        for optimizer, count in zip(self.optimizers, self.group_counts, strict=True):
            known = [group.get("lr") for group in optimizer.param_groups[:count]]
            rates += known + [None] * (count - len(known))
        return tuple(map(_one_rate, rates))

    def gained_parameters(self) -> bool:
        """Say whether an optimizer has gained parameters or groups since the recorder was attached."""
        ours = {id(parameter) for parameter in self.parameters}
        return any(
            len(optimizer.param_groups) > count
            or any(id(p) not in ours and is_measurable(p) for p in parameters_of(optimizer))
            for optimizer, count in zip(self.optimizers, self.group_counts, strict=True)
        )


def _one_rate(lr: Any) -> float | Tensor:
    """Return a group's learning rate; NaN for none, or for several in a tuple or tensor."""
    if isinstance(lr, Tensor):
        return lr.detach().clone() if lr.numel() == 1 else math.nan
    try:
        return float(lr)
    except (TypeError, ValueError):
        return math.nan


def optimizers_inside(optimizer: Any) -> tuple[torch.optim.Optimizer, ...]:
    """Return the optimizers that take the steps.

    `optimizer` is one optimizer, a list of them, or an object that holds them as `optimizers`. An object that holds
    optimizers and has its own `step` counts as one optimizer.
    """
    held = optimizer if isinstance(optimizer, (list, tuple)) else getattr(optimizer, "optimizers", None)
    if held is None or can_be_hooked(optimizer):
        return (optimizer_inside(optimizer),)
    found = tuple(inner for one in held for inner in optimizers_inside(one))
    if not found:
        raise InvalidArgumentError("The recorder was given no optimizer; give it the optimizers that step the model.")
    return found


def optimizer_inside(optimizer: Any) -> torch.optim.Optimizer:
    """Return the innermost optimizer: wrappers such as Accelerate's keep it as `optimizer`, and pass steps on to it."""
    inner = optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not can_be_hooked(inner):
        raise InvalidArgumentError(
            f"{type(optimizer).__name__} is not a torch.optim.Optimizer, and lacks step(), param_groups or a __dict__; "
            "give the recorder the object whose step() the loop calls."
        )
    return inner  # type: ignore[no-any-return]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of an optimizer, group after group."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def is_measurable(parameter: Tensor) -> bool:
    """Say whether a parameter is measured: every one, except frozen ones, if sparse or of integers."""
    return parameter.requires_grad or (parameter.is_floating_point() and parameter.layout == torch.strided)


def measured_parameters(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[list[str], list[Tensor]]:
    """Return names and tensors of the optimizers' parameters, in the model's order.

    Raises:
        InvalidArgumentError: The optimizers or one of the parameters cannot be measured.
    """
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise InvalidArgumentError(
            "LBFGS evaluates the loss several times a step, so that there is no single step to measure; "
            "use an optimizer whose step takes no closure."
        )
    _check_distinct(model, optimizers)
    held = {
        p: f"optimizer.{g}.{i}"
        for g, group in enumerate(group for optimizer in optimizers for group in optimizer.param_groups)
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
            raise InvalidArgumentError(f"{name} has no shape yet; run the model on a batch before making the recorder.")
        if parameter.is_complex():
            raise InvalidArgumentError(
                f"{name} is complex; train its real view (torch.view_as_real) to measure its smoothness."
            )
        if parameter.device.type == "meta":
            raise InvalidArgumentError(f"{name} is on the meta device; load or initialise the model first.")
        if not parameter.is_floating_point():
            raise InvalidArgumentError(f"{name} has dtype {parameter.dtype}, which has no gradient.")
    return [name for name, _ in named], [p for _, p in named]


def _check_distinct(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise InvalidArgumentError for a parameter that two optimizers step."""
    owners: dict[Tensor, torch.optim.Optimizer] = {}
    for optimizer in optimizers:
        for parameter in set(parameters_of(optimizer)):
            other = owners.setdefault(parameter, optimizer)
            if other is not optimizer or sum(one is optimizer for one in optimizers) > 1:
                names = [_plain_name(name) for name, p in model.named_parameters() if p is parameter]
                raise InvalidArgumentError(
                    f"{names[0] if names else 'A parameter'} is stepped by two of the recorder's optimizers "
                    f"({type(other).__name__} and {type(optimizer).__name__}); give each parameter to one of them, or "
                    "make a recorder for each optimizer."
                )


def _plain_name(name: str) -> str:
    """Return a parameter's name without the prefix that torch.compile adds."""
    return name.replace("_orig_mod.", "")
