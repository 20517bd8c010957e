"""What a recorder is given, checked: each error is a sentence that says how to mend it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsmooth.closures import Closure
from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.norms import accumulation_dtype
from lsmooth.trace.layout import GEOMETRIES, NORMS, Geometry


def checked_every(every: Any) -> int | Callable[[int], bool]:
    """Return which steps are measured: every so many, or those of which a function says so."""
    if callable(every):
        return every  # type: ignore[no-any-return]
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise InvalidArgumentError(f"every={every!r} is neither a positive int nor a callable on the step number.")
    return int(every)


def checked_gammas(gammas: Sequence[float]) -> tuple[float, ...]:
    """Return the positions along a step."""
    values = tuple(float(gamma) for gamma in gammas)
    if not values or not all(math.isfinite(gamma) and 0 < gamma <= 1 for gamma in values):
        raise InvalidArgumentError(f"gammas={list(values)} must be numbers in (0, 1], at least one.")
    if len(set(values)) != len(values):
        raise InvalidArgumentError(f"gammas={list(values)} has the same position twice.")
    return values


def checked_coordinates(coordinates: Any) -> int:
    """Return how many coordinates of each parameter tensor are followed."""
    if isinstance(coordinates, bool) or not isinstance(coordinates, Integral) or coordinates < 0:
        raise InvalidArgumentError(f"coordinates={coordinates!r} is not a number of coordinates, 0 or more.")
    return int(coordinates)


def checked_probes(probe: Any) -> tuple[Closure, ...]:
    """Return the closures whose mean is measured in place of the step's own loss; none without probes."""
    if probe is None:
        return ()
    probes = (probe,) if callable(probe) else tuple(probe)
    if not probes or not all(callable(item) for item in probes):
        raise InvalidArgumentError("probe must be a closure that returns a loss, or a list of such closures.")
    return probes


def checked_norms(norms: Any, device: torch.device) -> tuple[Geometry, ...]:
    """Return the geometries to measure in, l2 first."""
    asked = (norms,) if isinstance(norms, str) else tuple(norms)
    for norm in asked:
        if norm not in NORMS:
            raise unknown_name("norm", str(norm), NORMS)
    if "spectral" in asked and accumulation_dtype(device) != torch.float64:
        raise InvalidArgumentError(
            f"norms={asked!r}: singular values need float64, which the device {device.type} lacks; "
            "leave out 'spectral', or train on another device."
        )
    return tuple(GEOMETRIES[norm] for norm in NORMS if norm == "l2" or norm in asked)


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


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type != "meta":
        return value.item()
    return str(value)
