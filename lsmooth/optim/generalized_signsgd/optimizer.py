"""Generalized SignSGD: sign descent at one end, nearly Adam at the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lsmooth.errors import InvalidArgumentError, OptimizerError
from lsmooth.optim.checked import CheckedOptimizer, check_at_least_zero, check_below_one, check_lr
from lsmooth.optim.generalized_signsgd.compiled import COMPILED_DEVICES
from lsmooth.optim.generalized_signsgd.functional import generalized_signsgd
from lsmooth.optim.generalized_signsgd.fused import kernel_takes
from lsmooth.optim.generalized_signsgd.hyperparameters import Hyperparameters, Tensors
from lsmooth.optim.tensors import KERNEL_DEVICES


class GeneralizedSignSGD(CheckedOptimizer):
    """Algorithm 1 of the paper.

        m_t = beta1 m_{t-1} + (1 - beta1) g_t
        v_t = beta2 v_{t-1} + (1 - beta2) m_t²
        x_{t+1} = x_t - lr m_t / (√v_t + eps),      m_0 = v_0 = 0, all element-wise

    Adam averages g² where this averages m²; that is the difference. betas = (0, 0) with eps = 0 is SignSGD, and
    betas = (beta, 0) with eps = 0 is SIGNUM, exactly; a quotient whose denominator is 0 counts as 0.

    Args:
        params: Parameters, parameter groups, or (from PyTorch 2.6 on) named parameters.
        lr: Learning rate, a number or a tensor of one element.
        betas: beta1 and beta2, each in [0, 1). Theorem 1 asks for √beta2 < beta1.
        eps: Added to √v; Algorithm 1 has 0.
        weight_decay: Factor of the decay.
        decoupled_weight_decay: False adds weight_decay x to g (L2 penalty, which makes iterates depend on the scale
            of the loss); True multiplies x by 1 - lr weight_decay instead, and with eps = 0 iterates do not
            depend on the scale of the loss.
        bias_correction: Use m_t / (1 - beta1^t) and v_t / (1 - beta2^t); Algorithm 1 does not.
        maximize: Ascend instead of descend.
        foreach: Use the multi-tensor backend. None chooses the fastest backend that is exact for the parameters.
        fused: Use the fused backend: m goes through torch's fused Adam kernel. It needs eps > 0.
        compile: Use torch.compile to update each large tensor in one pass through memory: the fastest backend on the
            CPU, where it was measured. It is for CUDA devices, too. The first step waits for a compiler: some 15 s,
            and less where a process has compiled it before.
        differentiable: Let autograd see the step (the single-tensor backend, then).

    Raises:
        InvalidArgumentError: A hyperparameter is out of range, or switches contradict each other.
        OptimizerError: A parameter is complex, a gradient sparse, `fused=True` or `compile=True` cannot be had for a
            parameter, or no compiler works.

    Source: Crawshaw, Liu, Orabona, Zhang, Zhuang, "Robustness to Unbounded Smoothness of Generalized SignSGD",
    NeurIPS 2022, Algorithm 1; eps, weight decay and bias correction follow torch.optim.Adam.

    Examples:
        >>> x = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        >>> optimizer = GeneralizedSignSGD([x], lr=0.5, betas=(0.0, 0.0), eps=0.0)
        >>> x.grad = torch.tensor([1e-9, 1e9])
        >>> optimizer.step()
        >>> x.tolist()
        [1.5, -3.5]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        bias_correction: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        compile: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "bias_correction": bias_correction,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "compile": compile,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        check_lr(group["lr"])
        check_at_least_zero("epsilon value", group["eps"])
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise InvalidArgumentError(f"Invalid betas: {betas!r}; they must be two numbers, beta1 and beta2.")
        for index in (0, 1):
            check_below_one(f"beta parameter at index {index}", betas[index])
        check_at_least_zero("weight_decay value", group["weight_decay"])
        if group["compile"]:
            _check_compile(group)
        if group["fused"]:
            _check_fused(group)
        elif group["differentiable"] and group["foreach"]:
            raise InvalidArgumentError("`foreach` does not support `differentiable`; leave foreach unset.")

    def _update(self) -> None:
        for group in self.param_groups:
            generalized_signsgd(
                self._gather(group),
                Hyperparameters(
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    decoupled_weight_decay=group["decoupled_weight_decay"],
                    bias_correction=group["bias_correction"],
                    maximize=group["maximize"],
                    differentiable=group["differentiable"],
                ),
                foreach=group["foreach"],
                fused=group["fused"],
                compile=group["compile"],
            )

    def _gather(self, group: dict[str, Any]) -> Tensors:
        """Return the tensors of a group's step. State that is missing is made; steps are counted on."""
        params, grads = self._with_gradients(group)
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if "exp_avg" not in state:
                # A Python number: nothing on the device depends on it but with bias correction.
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if group["betas"][1] == 0:
                # v is m² at every step, and takes no memory.
                state.pop("exp_avg_sq", None)
            elif "exp_avg_sq" not in state:
                state["exp_avg_sq"] = state["exp_avg"].square()
            state["step"] += 1
        moments = [state["exp_avg"] for state in states]
        squares = [state.get("exp_avg_sq", m) for state, m in zip(states, moments, strict=True)]
        return Tensors(params, grads, moments, squares, [state["step"] for state in states])


def _check_compile(group: dict[str, Any]) -> None:
    for other in ("foreach", "fused", "differentiable"):
        if group[other]:
            raise InvalidArgumentError(f"`compile` does not support `{other}`; leave {other} unset.")
    for p in group["params"]:
        if p.device.type not in COMPILED_DEVICES or not torch.is_floating_point(p):
            raise OptimizerError(
                f"`compile=True` is for floating point parameters on {' or '.join(COMPILED_DEVICES)}, and one is "
                f"{p.dtype} on {p.device.type}; leave compile unset."
            )


def _check_fused(group: dict[str, Any]) -> None:
    if group["differentiable"]:
        raise InvalidArgumentError("`fused` does not support `differentiable`; leave fused unset.")
    if group["foreach"]:
        raise InvalidArgumentError("`fused` and `foreach` cannot be `True` together.")
    if group["eps"] == 0:
        raise InvalidArgumentError("`fused` needs eps > 0, it would turn 0/0 into NaN; leave fused unset.")
    for p in group["params"]:
        if not kernel_takes([p]):
            raise OptimizerError(
                "`fused=True` requires all the params to be floating point Tensors of supported devices: "
                f"{list(KERNEL_DEVICES)} but {p.dtype} and {p.device.type}; leave fused unset."
            )
