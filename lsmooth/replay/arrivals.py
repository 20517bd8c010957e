"""Gradients are counted as a backward pass delivers them, and handed on before the pass is over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lsmooth.parallel.shards import local

# Up to this size, holding all gradients at once costs less than taking them bucket by bucket. The limit is higher on a
# GPU, where each launch of a kernel costs the host time.
_TAKEN_WHOLE_BYTES = 1 << 20
_TAKEN_WHOLE_BYTES_ON_GPU = 1 << 23


def taken_whole(size: int, device: torch.device) -> bool:
    """Say whether gradients of `size` bytes in all are taken when all have arrived, and the displacement d is kept."""
    return size <= (_TAKEN_WHOLE_BYTES if device.type == "cpu" else _TAKEN_WHOLE_BYTES_ON_GPU)


class Arrivals:
    """Takes gradients from the parameters as a backward pass delivers them, and hands them on in buckets.

    Autograd may deliver a parameter's gradient in several parts: one for each microbatch, and more where a tied weight
    sits in reentrant checkpoints. The counts of the step's own backward passes say when a gradient is complete. A
    gradient that is not complete at the end (control flow took another way) is handed on then.

    Args:
        parameters: The measured parameters.
        expected: Number of parts in which each gradient arrives; None hands everything on at the end.
        bucket_bytes: Gradients are handed on together once they are this large.
    """

    def __init__(self, parameters: Sequence[Tensor], expected: Mapping[Tensor, int] | None, bucket_bytes: int) -> None:
        self._parameters = parameters
        self._early = expected is not None
        self._expected = [(expected or {}).get(parameter, 0) for parameter in parameters]
        self._left = list(self._expected)
        self._bucket_bytes = bucket_bytes
        self._consume: Callable[[Sequence[int], Sequence[Tensor]], None] | None = None
        self._bucket: list[int] = []
        self._filled = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> Arrivals:
        for position, parameter in enumerate(self._parameters if self._early else ()):
            # A parameter may have been frozen since the step's own backward. Only one that requires a gradient takes
            # hooks.
            frozen_since = self._expected[position] > 0 and not parameter.requires_grad
            if frozen_since:
                parameter.requires_grad_(True)
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._hook(position)))
            if frozen_since:
                parameter.requires_grad_(False)
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def taken_by(self, consume: Callable[[Sequence[int], Sequence[Tensor]], None]) -> Iterator[None]:
        """Run a block that makes one evaluation; hand its gradients to `consume`, with their parameters' positions."""
        self._begin(consume)
        yield
        self._end()
        self._consume = None

    def _begin(self, consume: Callable[[Sequence[int], Sequence[Tensor]], None]) -> None:
        self._left, self._consume, self._bucket, self._filled = list(self._expected), consume, [], 0

    def _end(self) -> None:
        """Hand on what has not been handed on."""
        waiting = set(self._bucket)
        self._bucket += [i for i, p in enumerate(self._parameters) if p.grad is not None and i not in waiting]
        self._empty()

    def _hook(self, position: int) -> Callable[[Tensor], None]:
        def arrived(parameter: Tensor) -> None:
            self._left[position] -= 1
            if self._left[position] == 0 and self._consume is not None and parameter.grad is not None:
                self._completed(position)

        return arrived

    def _completed(self, position: int) -> None:
        """Take note of a gradient that is complete."""
        self._bucket.append(position)
        self._filled += local(self._parameters[position].grad).nbytes  # type: ignore[arg-type]
        if self._filled >= self._bucket_bytes:
            self._empty()

    @torch.no_grad()
    def _empty(self) -> None:
        bucket, self._bucket, self._filled = self._bucket, [], 0
        if bucket and self._consume is not None:
            gradients = [local(self._parameters[i].grad) for i in bucket]  # type: ignore[arg-type]
            self._consume(bucket, gradients)
            for i in bucket:
                self._parameters[i].grad = None


@contextlib.contextmanager
def counted_arrivals(parameters: Sequence[Tensor]) -> Iterator[dict[Tensor, int]]:
    """Yield a dict that counts how often backward passes in the block accumulate into each parameter."""
    counts: dict[Tensor, int] = {}
    hooks: list[RemovableHandle] = []
    try:
        count_arrivals(parameters, counts, hooks)
        yield counts
    finally:
        try:
            _remove(hooks)
        finally:
            # Ctrl-C may have interrupted the first removal.
            _remove(hooks)


def _remove(hooks: Sequence[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def count_arrivals(parameters: Sequence[Tensor], counts: dict[Tensor, int], hooks: list[RemovableHandle]) -> None:
    """Count in `counts` how often backward passes accumulate into each parameter, until the hooks are removed.

    Hooks are added to `hooks` one by one, so that all can be removed if Ctrl-C comes in between.
    """

    def count(parameter: Tensor) -> None:
        counts[parameter] = counts.get(parameter, 0) + 1

    hooks.extend(p.register_post_accumulate_grad_hook(count) for p in parameters if p.requires_grad)
