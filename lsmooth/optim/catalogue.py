"""The optimizers by the names that the command line uses, and which hyperparameters each takes."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lsmooth.errors import InvalidArgumentError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class _Entry:
    """The class of an optimizer, its hyperparameters with defaults, and those that its name itself sets."""

    module: str
    cls: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)


_SIGN = "lsmooth.optim.generalized_signsgd"
_CLIP = "lsmooth.optim.sgd_clip"
_NORMALIZED = "lsmooth.optim.sgd_normalized"
_MOMENTUM = {"momentum": 0.9, "dampening": 0.0, "nesterov": False}
_DECAY = {"weight_decay": 0.0}
_EITHER_DECAY = {"weight_decay": 0.0, "decoupled_weight_decay": False}
_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}

_CATALOGUE: dict[str, _Entry] = {
    "generalized-signsgd": _Entry(_SIGN, "GeneralizedSignSGD", {**_ADAM, **_EITHER_DECAY, "bias_correction": False}),
    "signsgd": _Entry(
        _SIGN, "GeneralizedSignSGD", {"lr": 1e-3, **_EITHER_DECAY}, fixed={"betas": (0.0, 0.0), "eps": 0.0}
    ),
    # Its `momentum` becomes betas[0], see `build`.
    "signum": _Entry(_SIGN, "GeneralizedSignSGD", {"lr": 1e-3, "momentum": 0.9, **_EITHER_DECAY}, fixed={"eps": 0.0}),
    "adam": _Entry("torch.optim", "Adam", {**_ADAM, "weight_decay": 0.0, "amsgrad": False}),
    "adamw": _Entry("torch.optim", "AdamW", {**_ADAM, "weight_decay": 0.01, "amsgrad": False}),
    "sgd": _Entry("torch.optim", "SGD", {"lr": 1e-3, **_DECAY}),
    "sgd-momentum": _Entry("torch.optim", "SGD", {"lr": 1e-3, **_MOMENTUM, **_DECAY}),
    "sgd-momentum-normalized": _Entry(_NORMALIZED, "SGDNormalized", {"lr": 0.1, **_MOMENTUM, **_DECAY}),
    "sgd-clip-grad": _Entry(
        _CLIP, "SGDClip", {"lr": 0.1, "max_norm": 0.1, **_DECAY}, fixed={"momentum": 0.0, "nu": 0.0}
    ),
    "sgd-clip-momentum": _Entry(_CLIP, "SGDClip", {"lr": 0.1, "max_norm": 0.1, **_MOMENTUM, "nu": 1.0, **_DECAY}),
}

NAMES: tuple[str, ...] = tuple(_CATALOGUE)


def hyperparameters(name: str) -> dict[str, Any]:
    """Return the hyperparameters that the optimizer called `name` takes, with their defaults.

    Raises:
        InvalidArgumentError: There is no optimizer of that name.
    """
    return dict(_entry(name).defaults)


def build(name: str, params: Params, **hyperparameters: Any) -> Optimizer:
    """Return the optimizer called `name` over some parameters.

    Args:
        name: One of `NAMES`: `generalized-signsgd`; `signsgd` and `signum`, which are generalized SignSGD at
            betas (0, 0) and (momentum, 0) with eps = 0; torch's own `adam`, `adamw`, `sgd`, `sgd-momentum`;
            `sgd-momentum-normalized`; `sgd-clip-grad` and `sgd-clip-momentum`.
        params: Parameters, parameter groups, or (from PyTorch 2.6 on) named parameters.
        **hyperparameters: Those that `lsmooth.optim.hyperparameters(name)` lists; the others keep their defaults.

    Raises:
        InvalidArgumentError: There is no optimizer of that name, it does not take one of the hyperparameters, or
            one has a value out of range.

    Examples:
        >>> import torch, lsmooth
        >>> weights = [torch.nn.Parameter(torch.ones(3))]
        >>> lsmooth.optim.build("signum", weights, lr=0.01, momentum=0.95).defaults["betas"]
        (0.95, 0.0)
    """
    entry = _entry(name)
    for given in hyperparameters:
        if given not in entry.defaults:
            raise InvalidArgumentError(f"{name} has no {given}; it takes {', '.join(entry.defaults)}.")
        if isinstance(hyperparameters[given], str):
            raise InvalidArgumentError(f"{name} has {given}={hyperparameters[given]!r}, which is text, not a number.")
    arguments = {**entry.defaults, **hyperparameters, **entry.fixed}
    if name == "signum":
        arguments["betas"] = (arguments.pop("momentum"), 0.0)
    optimizer = getattr(importlib.import_module(entry.module), entry.cls)
    try:
        return optimizer(params, **arguments)
    except InvalidArgumentError:
        raise
    except ValueError as error:
        # torch's own optimizers say what is wrong, but not which optimizer refused it.
        raise InvalidArgumentError(f"{name} refuses its hyperparameters: {error}.") from error


def _entry(name: str) -> _Entry:
    if name not in _CATALOGUE:
        raise unknown_name("optimizer", name, NAMES)
    return _CATALOGUE[name]
