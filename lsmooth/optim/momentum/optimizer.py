"""Base of the optimizers that scale a direction by its norm over all parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lsmooth.errors import InvalidArgumentError
from lsmooth.optim.checked import CheckedOptimizer, check_at_least_zero, check_lr
from lsmooth.optim.momentum.directions import Hyperparameters, Move, whole_norm
from lsmooth.optim.momentum.multi_tensor import advance_multi_tensor, descend_multi_tensor
from lsmooth.optim.momentum.single_tensor import advance_single_tensor, descend_single_tensor
from lsmooth.optim.tensors import is_plain


class SharedArguments(TypedDict, total=False):
    """Arguments that all of these optimizers take by name, with the defaults of `MomentumOptimizer`."""

    dampening: float
    nesterov: bool
    weight_decay: float
    maximize: bool
    foreach: bool | None
    differentiable: bool


class MomentumOptimizer(CheckedOptimizer):
    """Base of the optimizers that scale a direction by its norm over all parameters.

        m_t = momentum m_{t-1} + (1 - dampening) g_t,       m_1 = g_1
        x_{t+1} = x_t - share_m scale(‖m_t‖) m_t - share_g scale(‖g_t‖) g_t

    A subclass returns share_g and share_m in `_shares`, and scale in `_scale`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float,
        own: Mapping[str, float],
        *,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        """Store hyperparameters; `own` holds those that only the subclass has."""
        defaults = {
            "lr": lr,
            **own,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        check_lr(group["lr"])
        for name in ("momentum", "dampening", "weight_decay"):
            check_at_least_zero(f"{name} value", group[name])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise InvalidArgumentError("Nesterov momentum requires a momentum and zero dampening.")
        if group["foreach"] and group["differentiable"]:
            raise InvalidArgumentError("`foreach` does not support `differentiable`; leave foreach unset.")

    def _shares(self, group: dict[str, Any]) -> tuple[float, float]:
        """Return the shares of the step that follow gradient and momentum."""
        return 0.0, 1.0

    def _scale(self, group: dict[str, Any], norm: Tensor) -> Tensor:
        """Return the factor, a tensor without dimensions, of a direction of this norm."""
        raise NotImplementedError

    def _update(self) -> None:
        advanced = [self._advance(group) for group in self.param_groups]
        moves = [move for move in advanced if move is not None]
        for kind in (0, 1):
            if not any(move.shares[kind] for move in moves):
                continue
            # A group without momentum moves along its gradient, whatever the shares say, and counts in both norms.
            norm = whole_norm([tensor for move in moves for tensor in move.directions[kind]])
            for move in moves:
                if move.shares[kind] == 0:
                    continue
                scale = self._scale(move.group, norm)
                if move.shares[kind] != 1:
                    scale = scale * move.shares[kind]
                descend = descend_multi_tensor if move.foreach else descend_single_tensor
                descend(move.params, move.directions[kind], scale)

    def _advance(self, group: dict[str, Any]) -> Move | None:
        """Bring the momentum of a group up to date, and return its next step; None where it has no gradients."""
        params, grads = self._with_gradients(group)
        if not params:
            return None
        foreach = group["foreach"]
        if foreach is None:
            foreach = not group["differentiable"] and is_plain(params)
        hyper = Hyperparameters(
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            differentiable=group["differentiable"],
        )
        states = [self.state[p] for p in params]
        buffers: list[Tensor | None] = [state.get("momentum_buffer") for state in states]
        advance = advance_multi_tensor if foreach else advance_single_tensor
        directions = advance(params, grads, buffers, hyper)
        if hyper.momentum == 0:
            return Move(group, params, directions, (0.0, 1.0), foreach)
        for state, buffer in zip(states, buffers, strict=True):
            state["momentum_buffer"] = buffer
        return Move(group, params, directions, self._shares(group), foreach)
