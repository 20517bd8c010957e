"""One pass through memory for each large tensor, in code that torch.compile makes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lsmooth.errors import OptimizerError, compiler_failure
from lsmooth.optim.generalized_signsgd.hyperparameters import Hyperparameters, Tensors, least_root
from lsmooth.optim.tensors import is_plain

# From this number of elements on, a pass less through a tensor saves more time than a call of compiled code takes. For
# the CPU it was measured with benchmarks/optimizers.py. For GPUs it is an estimate: a call takes some 50 µs of Python,
# in which they move 100 MB and more, or four tensors of 2^20 elements.
_WORTH_COMPILING = {"cpu": 1 << 18, "cuda": 1 << 20}
COMPILED_DEVICES = tuple(_WORTH_COMPILING)
# What torch.compile makes code with, by device.
_COMPILERS = {"cpu": "a C++ compiler that works with torch.compile", "cuda": "Triton, and a GPU that it works with"}
# Tensors of one size that a call of compiled code takes. The layers of a model often have four and more of a size; each
# tensor that is left over has a call of its own.
_A_CALL = 4


def compiled_signsgd(tensors: Tensors, hyper: Hyperparameters) -> Tensors:
    """Update each large tensor in one pass through memory, and return the others, which are left as they were.

    Equal to the single-tensor form up to rounding.

    Raises:
        OptimizerError: torch.compile finds no compiler that works.
    """
    alike: dict[tuple[torch.device, int, torch.dtype, int], list[int]] = {}
    others: list[int] = []
    for position, (*row, step) in enumerate(zip(*tensors, strict=True)):
        param = row[0]
        worth = param.numel() >= _WORTH_COMPILING.get(param.device.type, math.inf)
        if worth and is_plain(row) and all(map(Tensor.is_contiguous, row)):
            kind = (param.device, param.numel(), param.dtype, step if hyper.bias_correction else 1)
            alike.setdefault(kind, []).append(position)
        else:
            others.append(position)
    factors = functools.cache(functools.partial(_factors, hyper))
    for (device, _, dtype, step), positions in alike.items():
        try:
            for call in _calls(positions):
                columns = tensors.chosen(call)[:4]
                p, g, m, v = ([tensor.view(-1) for tensor in column] for column in columns)
                _one_pass_compiled()(p, g, m, v, factors(device, dtype, step))
        except Exception as error:
            reason = compiler_failure(error)
            if reason is None:
                raise
            raise OptimizerError(
                f"`compile=True` needs {_COMPILERS[device.type]} ({reason}); install one, or leave compile unset."
            ) from error
    return tensors.chosen(others)


def _calls(positions: list[int]) -> Iterator[list[int]]:
    """Split positions into `_A_CALL` at a time, and those left over one at a time: two shapes of call in all."""
    whole = len(positions) // _A_CALL * _A_CALL
    for first in range(0, whole, _A_CALL):
        yield positions[first : first + _A_CALL]
    for position in positions[whole:]:
        yield [position]


def _factors(hyper: Hyperparameters, device: torch.device, dtype: torch.dtype, step: int) -> Tensor:
    """Return the factors of a step, in a tensor: numbers of Python would be compiled for anew when they change."""
    correction, root = hyper.corrections(step, device)
    rate = hyper.lr / correction
    decoupled = hyper.weight_decay if hyper.decoupled_weight_decay else 0.0
    found = [
        -1.0 if hyper.maximize else 1.0,
        0.0 if hyper.decoupled_weight_decay else hyper.weight_decay,
        1 - hyper.beta1,
        hyper.beta2,
        1 - hyper.beta2,
        1 - hyper.lr * decoupled,
        # m / (√v / root + eps) = root m / (√v + root eps)
        rate * root,
        hyper.eps * root,
        0.0 if hyper.eps != 0 else least_root(dtype),
    ]
    wide = torch.promote_types(dtype, torch.float32)
    # One copy to the device holds all numbers. A learning rate that is there already stays there, so that nobody waits.
    numbers = torch.tensor([0.0 if isinstance(item, Tensor) else item for item in found], dtype=wide)
    factors = numbers.to(device, non_blocking=True)
    if isinstance(hyper.lr, Tensor):
        factors = torch.stack(
            [
                item.detach().reshape(()).to(device, wide, non_blocking=True) if isinstance(item, Tensor) else factor
                for item, factor in zip(found, factors, strict=True)
            ]
        )
    return factors


@functools.cache
def _one_pass_compiled() -> Callable[[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor], None]:
    """Return `_one_pass` compiled for tensors of any size."""
    return torch.compile(_one_pass, dynamic=True)


def _one_pass(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], factors: Tensor
) -> None:
    """Update tensors by operations on single elements alone, so that a compiler can do all of them in one loop."""
    sign, l2, arriving, kept_square, arriving_square, kept, rate, eps, least = factors.unbind()
    # Where tensors are of low precision, only the stored results are rounded to it.
    wide = factors.dtype
    for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        x, moment, square = p.to(wide), m.to(wide), v.to(wide)
        moment = moment + arriving * (sign * g.to(wide) + l2 * x - moment)
        square = kept_square * square + arriving_square * moment * moment
        m.copy_(moment)
        v.copy_(square)
        p.copy_(kept * x - rate * moment / (torch.maximum(square.sqrt(), least) + eps))
