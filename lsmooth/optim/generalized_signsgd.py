"""Generalized SignSGD: sign descent at one end, nearly Adam at the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lsmooth.errors import InvalidArgumentError, OptimizerError, compiler_failure
from lsmooth.optim.groups import (
    KERNEL_DEVICES,
    CheckedOptimizer,
    blocks,
    by_device_and_dtype,
    check_at_least_zero,
    check_below_one,
    check_lr,
    is_plain,
    kinds,
    lie_alike,
    on_device,
)


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
            CPU, and only there. The first step waits for a C++ compiler: some 15 s, and less where a process has
            compiled it before.
        differentiable: Let autograd see the step (the single-tensor backend, then).

    Raises:
        InvalidArgumentError: A hyperparameter is out of range, or switches contradict each other.
        OptimizerError: A parameter is complex, a gradient sparse, `fused=True` or `compile=True` cannot be had for a
            parameter, or no C++ compiler works.

    Source: Crawshaw, Liu, Orabona, Zhang, Zhuang, "Robustness to Unbounded Smoothness of Generalized SignSGD",
    NeurIPS 2022, Algorithm 1; eps, weight decay and bias correction follow torch.optim.Adam.

    Example:
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
            for other in ("foreach", "fused", "differentiable"):
                if group[other]:
                    raise InvalidArgumentError(f"`compile` does not support `{other}`; leave {other} unset.")
            for p in group["params"]:
                if p.device.type != "cpu" or not torch.is_floating_point(p):
                    raise OptimizerError(
                        "`compile=True` is for floating point parameters on the CPU, and one is "
                        f"{p.dtype} on {p.device.type}; leave compile unset."
                    )
        if not group["fused"]:
            if group["differentiable"] and group["foreach"]:
                raise InvalidArgumentError("`foreach` does not support `differentiable`; leave foreach unset.")
            return
        if group["differentiable"]:
            raise InvalidArgumentError("`fused` does not support `differentiable`; leave fused unset.")
        if group["foreach"]:
            raise InvalidArgumentError("`fused` and `foreach` cannot be `True` together.")
        if group["eps"] == 0:
            raise InvalidArgumentError("`fused` needs eps > 0, it would turn 0/0 into NaN; leave fused unset.")
        for p in group["params"]:
            if not _kernel_takes([p]):
                raise OptimizerError(
                    "`fused=True` requires all the params to be floating point Tensors of supported devices: "
                    f"{list(KERNEL_DEVICES)} but {p.dtype} and {p.device.type}; leave fused unset."
                )

    def _update(self) -> None:
        for group in self.param_groups:
            params, grads = self._with_gradients(group)
            beta1, beta2 = group["betas"]
            exp_avgs, exp_avg_sqs, steps = [], [], []
            for p in params:
                state = self.state[p]
                if "exp_avg" not in state:
                    # A Python number: nothing on the device depends on it but with bias correction.
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                if beta2 == 0:
                    # v is m² at every step, and takes no memory.
                    state.pop("exp_avg_sq", None)
                else:
                    if "exp_avg_sq" not in state:
                        state["exp_avg_sq"] = state["exp_avg"].square()
                    exp_avg_sqs.append(state["exp_avg_sq"])
                state["step"] += 1
                exp_avgs.append(state["exp_avg"])
                steps.append(state["step"])
            generalized_signsgd(
                params,
                grads,
                exp_avgs,
                exp_avg_sqs,
                steps,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                decoupled_weight_decay=group["decoupled_weight_decay"],
                bias_correction=group["bias_correction"],
                maximize=group["maximize"],
                foreach=group["foreach"],
                fused=group["fused"],
                compile=group["compile"],
                differentiable=group["differentiable"],
            )


def _kernel_takes(params: list[Tensor]) -> bool:
    """Say whether torch's fused kernels take all of some parameters."""
    devices, dtypes = kinds(params)
    return all(device.type in KERNEL_DEVICES for device in devices) and all(dtype.is_floating_point for dtype in dtypes)


def generalized_signsgd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[int],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    bias_correction: bool,
    maximize: bool,
    foreach: bool | None = None,
    fused: bool | None = None,
    compile: bool = False,
    differentiable: bool = False,
) -> None:
    """Functional form of `GeneralizedSignSGD`: update params, exp_avgs (m) and exp_avg_sqs (v) in place.

    `steps` are the numbers t of this step, counted from 1; exp_avg_sqs is empty where beta2 is 0. With foreach and
    fused both None, the fastest backend that is exact for these tensors and compiles nothing is taken: fused where
    eps > 0, else multi-tensor. With beta2 = 0 there is nothing to fuse or to compile, and multi-tensor stands in.
    """
    if not params:
        return
    if foreach is None and fused is None and not differentiable and is_plain(params):
        fused = eps > 0 and _kernel_takes(params)
        foreach = not fused
    if fused and beta2 == 0:
        fused, foreach = False, True
    routine = (
        _compiled_generalized_signsgd
        if compile and beta2 != 0
        else _fused_generalized_signsgd
        if fused
        else _multi_tensor_generalized_signsgd
        if foreach
        else _single_tensor_generalized_signsgd
    )
    routine(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        bias_correction=bias_correction,
        maximize=maximize,
        differentiable=differentiable,
    )


def _single_tensor_generalized_signsgd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[int],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    bias_correction: bool,
    maximize: bool,
    differentiable: bool,
) -> None:
    """Update one tensor after another: the plain form, which the other backends are tested against."""
    for position, (p, grad, exp_avg, step) in enumerate(zip(params, grads, exp_avgs, steps, strict=True)):
        rate = lr if differentiable else on_device(lr, p.device)
        if maximize:
            grad = -grad
        if weight_decay != 0:
            if decoupled_weight_decay:
                p.mul_(1 - rate * weight_decay)
            else:
                grad = grad.add(p, alpha=weight_decay)
        exp_avg.lerp_(grad, 1 - beta1)
        # Autograd must find m as it was here, and the next step overwrites it.
        m = exp_avg.clone() if differentiable else exp_avg
        if bias_correction:
            rate = rate / (1 - beta1**step)
        if beta2 == 0 and eps == 0:
            p.sub_(m.sign() * rate)
            continue
        if beta2 == 0:
            denominator = m.abs()
        else:
            exp_avg_sq = exp_avg_sqs[position]
            exp_avg_sq.mul_(beta2).addcmul_(m, m, value=1 - beta2)
            denominator = exp_avg_sq.sqrt()
            if bias_correction:
                denominator = denominator / (1 - beta2**step) ** 0.5
        denominator = denominator + eps if eps != 0 else denominator.clamp(min=_least_root(m.dtype))
        if isinstance(rate, Tensor):
            p.sub_(m / denominator * rate)
        else:
            p.addcdiv_(m, denominator, value=-rate)


def _chosen(columns: Sequence[Sequence[Any]], positions: Sequence[int]) -> list[list[Any]]:
    """Return some positions of parallel lists."""
    return [[column[position] for position in positions] for column in columns]


def _least_root(dtype: torch.dtype) -> float:
    """Return a number no larger than √v of any v > 0 in a dtype: for eps = 0, what √v may not fall below.

    It changes no root but that of 0, makes 0/0 into 0, and where m² was too small to be held in v, keeps |m| / √v
    below 1 / √(1 - beta2), which bounds it in exact arithmetic, too.
    """
    numbers = torch.finfo(dtype)
    return 0.99 * (numbers.smallest_normal * numbers.eps) ** 0.5


def _multi_tensor_generalized_signsgd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[int],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    bias_correction: bool,
    maximize: bool,
    differentiable: bool,
) -> None:
    """Update all tensors of a device together.

    On a GPU this takes as much further memory as the parameters; on the CPU it goes through them in blocks.
    """
    if differentiable:
        raise InvalidArgumentError("`foreach` does not support `differentiable`; leave foreach unset.")
    if not bias_correction:
        # Without correction the number of the step does not matter, and all tensors go together.
        steps = [1] * len(params)
    # Without beta2 there is no v; m stands in for it in the lists, unread.
    for columns in by_device_and_dtype(params, grads, exp_avgs, exp_avg_sqs if beta2 != 0 else exp_avgs, steps):
        rate = on_device(lr, columns[0][0].device)
        for step in sorted(set(columns[4])):
            chosen = [position for position, other in enumerate(columns[4]) if other == step]
            step_rate = rate / (1 - beta1**step) if bias_correction else rate
            for p, g, m, v in blocks(_chosen(columns[:4], chosen)):
                if weight_decay != 0 and decoupled_weight_decay:
                    torch._foreach_mul_(p, 1 - rate * weight_decay)
                if maximize:
                    g = list(torch._foreach_neg(g))
                if weight_decay != 0 and not decoupled_weight_decay:
                    g = list(torch._foreach_add(g, p, alpha=weight_decay))
                torch._foreach_lerp_(m, g, 1 - beta1)
                if beta2 == 0 and eps == 0:
                    ratio = torch._foreach_sign(m)
                    if isinstance(step_rate, Tensor):
                        torch._foreach_mul_(ratio, step_rate)
                        torch._foreach_sub_(p, ratio)
                    else:
                        torch._foreach_add_(p, ratio, alpha=-step_rate)
                    continue
                if beta2 == 0:
                    denominator = torch._foreach_abs(m)
                else:
                    torch._foreach_mul_(v, beta2)
                    torch._foreach_addcmul_(v, m, m, value=1 - beta2)
                    denominator = torch._foreach_sqrt(v)
                    if bias_correction:
                        torch._foreach_div_(denominator, (1 - beta2**step) ** 0.5)
                if eps == 0:
                    torch._foreach_clamp_min_(denominator, _least_root(m[0].dtype))
                else:
                    torch._foreach_add_(denominator, eps)
                if isinstance(step_rate, Tensor):
                    torch._foreach_div_(denominator, -step_rate)
                    torch._foreach_addcdiv_(p, m, denominator)
                else:
                    torch._foreach_addcdiv_(p, m, denominator, value=-step_rate)


# bias_correction2 = 1 - beta2^step is 1 in float32 from here on, for every beta2 < 1 that is not 1 in float32.
_NO_CORRECTION = 1e30


def _fused_generalized_signsgd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[int],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    bias_correction: bool,
    maximize: bool,
    differentiable: bool,
) -> None:
    """Update with torch's fused Adam kernel, which is given m as its gradient.

    Adam's own first moment then has beta1 = 0 and is m again, its second moment averages m² as Algorithm 1 does, and
    its update is lr m / (√(v / (1 - beta2^t)) + eps), where t is so large that beta2^t vanishes. m itself is
    brought up to date before, in place: nothing is allocated. Equal to the single-tensor form up to rounding, for
    eps > 0.
    """
    if differentiable:
        raise InvalidArgumentError("`fused` does not support `differentiable`; leave fused unset.")
    if not bias_correction:
        # Without correction the number of the step does not matter, and all tensors go together.
        steps = [1] * len(params)
    walked = [i for i, p in enumerate(params) if not lie_alike(p, exp_avgs[i], exp_avg_sqs[i])]
    columns = (params, grads, exp_avgs, exp_avg_sqs, steps)
    if walked:
        # The kernel reads tensors as they lie in memory; one with gaps, say, has to be walked.
        _single_tensor_generalized_signsgd(
            *_chosen(columns, walked),
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            bias_correction=bias_correction,
            maximize=maximize,
            differentiable=differentiable,
        )
    read = sorted(set(range(len(params))) - set(walked))
    for p, g, m, v, t in by_device_and_dtype(*_chosen(columns, read)):
        rate = on_device(lr, p[0].device)
        for step in sorted(set(t)):
            correction1 = 1 - beta1**step if bias_correction else 1.0
            count = torch.full((), step if bias_correction else _NO_CORRECTION, dtype=torch.float32, device=p[0].device)
            kernel = torch._fused_adamw_ if decoupled_weight_decay else torch._fused_adam_
            chosen = [position for position, other in enumerate(t) if other == step]
            chosen_p, chosen_g, chosen_m, chosen_v = _chosen((p, g, m, v), chosen)
            if maximize:
                torch._foreach_mul_(chosen_m, beta1)
                torch._foreach_add_(chosen_m, chosen_g, alpha=beta1 - 1)
            else:
                torch._foreach_lerp_(chosen_m, chosen_g, 1 - beta1)
            if weight_decay != 0 and not decoupled_weight_decay:
                torch._foreach_add_(chosen_m, chosen_p, alpha=weight_decay * (1 - beta1))
            kernel(
                chosen_p,
                chosen_m,
                chosen_m,
                chosen_v,
                [],
                [count] * len(chosen),
                amsgrad=False,
                lr=rate / correction1,
                beta1=0.0,
                beta2=beta2,
                # The kernel multiplies its weight decay by its lr, which carries the correction of m.
                weight_decay=weight_decay * correction1 if decoupled_weight_decay else 0.0,
                eps=eps,
                maximize=False,
            )


# From as many elements on, a pass less through a tensor saves more time than a call of compiled code takes.
_WORTH_COMPILING = 1 << 18
# Tensors of one size that a call of compiled code takes, where there are as many, as the layers of a model have; each
# one that is left over has its own.
_A_CALL = 4


def _compiled_generalized_signsgd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[int],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    bias_correction: bool,
    maximize: bool,
    differentiable: bool,
) -> None:
    """Update each large tensor in one pass through memory, by code that torch.compile makes; the others as ever.

    Equal to the single-tensor form up to rounding.
    """
    columns = (params, grads, exp_avgs, exp_avg_sqs, steps)
    alike: dict[tuple[int, torch.dtype, int], list[int]] = {}
    others: list[int] = []
    for position, (*tensors, step) in enumerate(zip(*columns, strict=True)):
        param = tensors[0]
        worth = param.numel() >= _WORTH_COMPILING and param.device.type == "cpu"
        if worth and is_plain(tensors) and all(map(Tensor.is_contiguous, tensors)):
            alike.setdefault((param.numel(), param.dtype, step if bias_correction else 1), []).append(position)
        else:
            others.append(position)

    @functools.cache
    def numbers(kind: torch.dtype, step: int) -> Tensor:
        """Return what a step multiplies by, in a tensor, since other numbers would have to be compiled for anew."""
        rate = lr / (1 - beta1**step) if bias_correction else lr
        root = (1 - beta2**step) ** 0.5 if bias_correction else 1.0
        found = [
            -1.0 if maximize else 1.0,
            0.0 if decoupled_weight_decay else weight_decay,
            1 - beta1,
            beta2,
            1 - beta2,
            1 - lr * weight_decay if decoupled_weight_decay else 1.0,
            # m / (√v / root + eps) = root m / (√v + root eps)
            rate * root,
            eps * root,
            0.0 if eps != 0 else _least_root(kind),
        ]
        dtype = torch.promote_types(kind, torch.float32)
        return torch.stack([torch.as_tensor(number, dtype=dtype, device="cpu").reshape(()) for number in found])

    try:
        for (_, dtype, step), positions in alike.items():
            factors = numbers(dtype, step)
            whole = len(positions) // _A_CALL * _A_CALL
            calls = [positions[first : first + _A_CALL] for first in range(0, whole, _A_CALL)]
            for call in calls + [[position] for position in positions[whole:]]:
                p, g, m, v = ([tensor.view(-1) for tensor in column] for column in _chosen(columns[:4], call))
                _compiled()(p, g, m, v, factors)
    except Exception as error:
        reason = compiler_failure(error)
        if reason is None:
            raise
        raise OptimizerError(
            f"`compile=True` needs a C++ compiler that works with torch.compile ({reason}); install one, or leave "
            "compile unset."
        ) from error
    generalized_signsgd(
        *_chosen(columns, others),
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        bias_correction=bias_correction,
        maximize=maximize,
        differentiable=differentiable,
    )


@functools.cache
def _compiled() -> Callable[[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor], None]:
    """Return `_one_pass` compiled for tensors of any size."""
    return torch.compile(_one_pass, dynamic=True)


def _one_pass(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], numbers: Tensor
) -> None:
    """Update tensors by operations on single elements alone, so that a compiler can do all of them in one loop."""
    sign, l2, arriving, kept_square, arriving_square, kept, rate, eps, least = numbers.unbind()
    # Where tensors are of low precision, only what is stored is rounded to it.
    wide = numbers.dtype
    for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        x, moment, square = p.to(wide), m.to(wide), v.to(wide)
        moment = moment + arriving * (sign * g.to(wide) + l2 * x - moment)
        square = kept_square * square + arriving_square * moment * moment
        m.copy_(moment)
        v.copy_(square)
        p.copy_(kept * x - rate * moment / (torch.maximum(square.sqrt(), least) + eps))
