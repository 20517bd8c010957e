"""What the optimizers here ask of parameter groups, and how they gather tensors for a step."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from lsmooth.errors import InvalidArgumentError, OptimizerError

# Elements of each tensor that are updated at a time on the CPU: few enough to stay in the cache from one operation to
# the next, enough that calls cost little. Measured with benchmarks/optimizers.py.
_CPU_BLOCK = 1 << 18

# Where torch's fused kernels were seen to do what the backends here ask of them.
KERNEL_DEVICES = ("cpu", "cuda")

_DEVICE, _DTYPE, _LAYOUT = map(operator.attrgetter, ("device", "dtype", "layout"))


class CheckedOptimizer(Optimizer):
    """An optimizer that checks the hyperparameters of every group, those added later included.

    A subclass says what is out of range in `_check` and updates all parameters in `_update`.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its hyperparameters and parameters are checked as those given at the start.

        Raises:
            InvalidArgumentError: A hyperparameter is out of range.
            OptimizerError: A parameter is complex.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
            for p in group["params"]:
                if torch.is_complex(p):
                    raise OptimizerError(
                        f"{type(self).__name__} does not support complex parameters (a sign of complex numbers is "
                        "not defined); hold real and imaginary part as two real parameters."
                    )
        except BaseException:
            # A refused group leaves the optimizer as it was.
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Groups from a checkpoint of an earlier version may lack what has been added since.
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient.

        Args:
            closure: Evaluates the model again and returns the loss.

        Raises:
            OptimizerError: A gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _check(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _update(self) -> None:
        raise NotImplementedError

    def _with_gradients(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters of a group that have a gradient, and their gradients."""
        params = [p for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params]
        if any(layout != torch.strided for layout in set(map(_LAYOUT, grads))):
            raise OptimizerError(
                f"{type(self).__name__} does not support sparse gradients; make the layer give dense ones "
                "(sparse=False)."
            )
        return params, grads


def check_above_zero(kind: str, value: float) -> None:
    """Refuse a hyperparameter that is not above 0."""
    _check_number(kind, value)
    if not value > 0:
        raise InvalidArgumentError(f"Invalid {kind}: {value}; it must be above 0.")


def _check_number(kind: str, value: Any) -> None:
    """Refuse what is no number, such as text from a settings file."""
    if not isinstance(value, (numbers.Real, Tensor)):
        raise InvalidArgumentError(f"Invalid {kind}: {value!r}; it must be a number.")


def check_lr(lr: float | Tensor) -> None:
    """Refuse a learning rate that is negative, or a tensor of several."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise InvalidArgumentError("Tensor lr must be 1-element.")
    _check_number("learning rate", lr)
    if not lr >= 0.0:
        raise InvalidArgumentError(f"Invalid learning rate: {lr}; it must be at least 0.")


def check_at_least_zero(kind: str, value: float) -> None:
    """Refuse a hyperparameter that is negative or NaN."""
    _check_number(kind, value)
    if not value >= 0.0:
        raise InvalidArgumentError(f"Invalid {kind}: {value}; it must be at least 0.")


def check_below_one(kind: str, value: float) -> None:
    """Refuse a hyperparameter outside of [0, 1)."""
    _check_number(kind, value)
    if not 0.0 <= value < 1.0:
        raise InvalidArgumentError(f"Invalid {kind}: {value}; it must be at least 0 and below 1.")


def kinds(tensors: Sequence[Tensor]) -> tuple[set[torch.device], set[torch.dtype]]:
    """Return the devices and the dtypes that there are among tensors."""
    return set(map(_DEVICE, tensors)), set(map(_DTYPE, tensors))


def by_device_and_dtype(*lists: Sequence[Any]) -> Iterator[tuple[list[Any], ...]]:
    """Split parallel lists, the first of them tensors, into runs that one multi-tensor kernel can take together."""
    if not lists[0]:
        return
    # Nearly always all are alike, which takes less time to see than to sort.
    if all(len(found) == 1 for found in kinds(lists[0])):
        yield tuple(list(values) for values in lists)
        return
    found: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(lists[0]):
        found.setdefault((tensor.device, tensor.dtype), []).append(position)
    for positions in found.values():
        yield tuple([values[position] for position in positions] for values in lists)


def on_device(value: float | Tensor, device: torch.device) -> float | Tensor:
    """Return a number as it is, and a tensor of one element as one without dimensions on `device`."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(device, non_blocking=True)
    return value


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """Say whether all tensors are torch's own class: subclasses may redefine what a multi-tensor kernel skips."""
    return set(map(type, tensors)) <= {Tensor, torch.nn.Parameter}


def lie_alike(*tensors: Tensor) -> bool:
    """Say whether tensors of one shape fill their memory without gaps, their elements in the same order."""
    if all(map(Tensor.is_contiguous, tensors)):
        return True
    first = tensors[0]
    if any(other.stride() != first.stride() for other in tensors[1:]):
        return False
    expected = 1
    for stride, size in sorted(zip(first.stride(), first.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def blocks(lists: Sequence[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Split parallel lists of tensors into what is updated at a time.

    On the CPU that are flat pieces of at most `_CPU_BLOCK` elements of each, so that what one operation leaves in the
    cache the next one finds there. On a GPU it is everything at once.
    """
    if lists[0][0].device.type != "cpu":
        yield list(lists)
        return
    block: list[tuple[Tensor, ...]] = []
    held = 0
    for row in zip(*lists, strict=True):
        size = row[0].numel()
        pieces: Iterable[tuple[Tensor, ...]] = (row,)
        if size > _CPU_BLOCK and lie_alike(*row):
            pieces = zip(*(t.as_strided((size,), (1,)).split(_CPU_BLOCK) for t in row), strict=True)
        for piece in pieces:
            if block and held + piece[0].numel() > _CPU_BLOCK:
                yield [list(tensors) for tensors in zip(*block, strict=True)]
                block, held = [], 0
            block.append(piece)
            held += piece[0].numel()
    yield [list(tensors) for tensors in zip(*block, strict=True)]
