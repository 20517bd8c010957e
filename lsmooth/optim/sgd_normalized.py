"""SGD whose momentum is divided by its norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lsmooth.optim.momentum import MomentumOptimizer, SharedArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SGDNormalized(MomentumOptimizer):
    """Normalized SGD with momentum, with one norm over all parameters of all groups.

        m_t = momentum m_{t-1} + (1 - dampening) g_t,       m_1 = g_1
        x_{t+1} = x_t - lr m_t / ‖m_t‖

    Every step has length lr, whatever the scale of the loss; where m_t = 0, nothing moves.

    Args:
        params: Parameters, parameter groups, or (from PyTorch 2.6 on) named parameters.
        lr: Length of the step, a number or a tensor of one element.
        momentum: Momentum factor; 0 makes m_t = g_t.
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

    Source: Jin, Zhang, Wang, Wang, "Non-convex Distributionally Robust Optimization: Non-asymptotic Analysis",
    NeurIPS 2021 (normalized SGD with momentum).

    Examples:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = SGDNormalized([x], lr=0.5)
        >>> x.grad = torch.tensor([3e9, 4e9])
        >>> optimizer.step()
        >>> x.tolist()
        [-0.30000001192092896, -0.4000000059604645]
    """

    def __init__(
        self, params: ParamsT, lr: float | Tensor, momentum: float = 0.9, **shared: Unpack[SharedArguments]
    ) -> None:
        super().__init__(params, lr, momentum, {}, **shared)

    def _scale(self, group: dict[str, Any], norm: Tensor) -> Tensor:
        lr = group["lr"]
        rate = lr.reshape(()).to(norm.device, norm.dtype, non_blocking=True) if isinstance(lr, Tensor) else lr
        # Where the norm is 0 there is no direction, and 0 in the place of 1/0 moves nothing. NaN stays NaN.
        return norm.reciprocal().nan_to_num(nan=math.nan, posinf=0.0) * rate
