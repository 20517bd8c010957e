"""SGD with clipping: of the gradient, of its momentum, or a mixture of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lsmooth.errors import InvalidArgumentError
from lsmooth.optim.checked import check_above_zero, check_at_least_zero
from lsmooth.optim.momentum import MomentumOptimizer, SharedArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGDClip(MomentumOptimizer):
    """Clipped SGD, with one norm over all parameters of all groups.

        m_t = momentum m_{t-1} + (1 - dampening) g_t,       m_1 = g_1
        x_{t+1} = x_t - nu min(lr, max_norm / ‖m_t‖) m_t - (1 - nu) min(lr, max_norm / ‖g_t‖) g_t

    nu = 0 clips the gradient (SGDClipGrad), nu = 1 the momentum (SGDClipMomentum).

    Args:
        params: Parameters, parameter groups, or (from PyTorch 2.6 on) named parameters.
        lr: Learning rate, a number or a tensor of one element.
        max_norm: The longest step, in parameter space: a gradient or momentum longer than max_norm / lr is clipped.
        momentum: Momentum factor; 0 makes m_t = g_t.
        nu: Share of the step that follows the momentum, in [0, 1].
        dampening: 0 is heavy ball, as torch.optim.SGD has it and the published hyperparameters want it;
            dampening = momentum is the moving average that the source writes.
        nesterov: Use g_t + momentum m_t in the place of m_t.
        weight_decay: Factor of the L2 penalty; weight_decay x is added to g_t before all else.
        maximize: Ascend instead of descend.
        foreach: Use the multi-tensor backend; None uses it wherever tensors are torch's own class.
        differentiable: Let autograd see the step.

    Raises:
        InvalidArgumentError: A hyperparameter is out of range.
        OptimizerError: A parameter is complex or a gradient sparse.

    Source: Zhang, Jin, Fang, Wang, "Improved Analysis of Clipping Algorithms for Non-convex Optimization",
    NeurIPS 2020, Algorithm 1.

    Examples:
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = SGDClip([x], lr=1.0, max_norm=0.5)
        >>> x.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> x.tolist()
        [-0.30000001192092896, -0.4000000059604645]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        max_norm: float,
        momentum: float = 0.0,
        *,
        nu: float = 1.0,
        **shared: Unpack[SharedArguments],
    ) -> None:
        super().__init__(params, lr, momentum, {"max_norm": max_norm, "nu": nu}, **shared)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_above_zero("max_norm value", group["max_norm"])
        check_at_least_zero("nu value", group["nu"])
        if not 0.0 <= group["nu"] <= 1.0:
            raise InvalidArgumentError(f"Invalid nu value: {group['nu']}; it must lie between 0 and 1.")

    def _shares(self, group: dict[str, Any]) -> tuple[float, float]:
        return 1 - group["nu"], group["nu"]

    def _scale(self, group: dict[str, Any], norm: Tensor) -> Tensor:
        # A norm of 0 makes max_norm / 0 infinite, so that nothing is clipped.
        limit = group["max_norm"] / norm
        lr = group["lr"]
        if isinstance(lr, Tensor):
            return torch.minimum(limit, lr.reshape(()).to(limit.device, limit.dtype, non_blocking=True))
        return limit.clamp(max=lr)
