"""Which backend steps which tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lsmooth.optim.generalized_signsgd.compiled import compiled_signsgd
from lsmooth.optim.generalized_signsgd.fused import fused_signsgd, kernel_takes
from lsmooth.optim.generalized_signsgd.hyperparameters import Hyperparameters, Tensors
from lsmooth.optim.generalized_signsgd.multi_tensor import multi_tensor_signsgd
from lsmooth.optim.generalized_signsgd.single_tensor import single_tensor_signsgd
from lsmooth.optim.tensors import is_plain


def generalized_signsgd(
    tensors: Tensors,
    hyper: Hyperparameters,
    *,
    foreach: bool | None = None,
    fused: bool | None = None,
    compile: bool = False,
) -> None:
    """Functional form of `GeneralizedSignSGD`: update params, exp_avgs (m) and exp_avg_sqs (v) in place.

    With foreach and fused both None, the fastest backend is taken that is exact for these tensors and compiles
    nothing: fused where eps > 0, else multi-tensor. With beta2 = 0 there is nothing to fuse or to compile, and
    multi-tensor stands in.

    Raises:
        InvalidArgumentError: A multi-tensor or fused step would have to be differentiable.
        OptimizerError: `compile` is set and no compiler works.
    """
    if compile and hyper.beta2 != 0:
        # The compiled backend leaves tensors that are not worth compiling to the others.
        tensors, foreach, fused = compiled_signsgd(tensors, hyper), None, None
    if tensors.params:
        _backend(tensors, hyper, foreach, fused)(tensors, hyper)


def _backend(
    tensors: Tensors, hyper: Hyperparameters, foreach: bool | None, fused: bool | None
) -> Callable[[Tensors, Hyperparameters], None]:
    if foreach is None and fused is None and not hyper.differentiable and is_plain(tensors.params):
        fused = hyper.eps > 0 and kernel_takes(tensors.params)
        foreach = not fused
    # Without v there is nothing to fuse. torch.compile fuses the multi-tensor form itself, but no kernel.
    if fused and (hyper.beta2 == 0 or torch.compiler.is_compiling()):
        fused, foreach = False, True
    return fused_signsgd if fused else multi_tensor_signsgd if foreach else single_tensor_signsgd
