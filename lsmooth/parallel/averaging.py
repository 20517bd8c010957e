"""Averages gradients of replicas while they arrive, in place of DistributedDataParallel, which holds all to the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Averager:
    """Averages gradients over the ranks of a model in DistributedDataParallel.

    Args:
        ddp: The model.
    """

    def __init__(self, ddp: nn.parallel.DistributedDataParallel) -> None:
        self._ddp = ddp
        self._takes_over = False

    def synchronisation(self) -> Synchronisation:
        """Return what makes contexts in which backward passes average gradients if they do so now."""
        return Synchronisation(self, bool(self._ddp.require_backward_grad_sync))

    def may_take_over(self, context: Callable[[], AbstractContextManager[None]]) -> bool:
        """Say whether gradients of a step, whose last backward pass ran in `context`, can be averaged here.

        They can where DistributedDataParallel takes the plain mean of all gradients, and every parameter takes part on
        every rank.
        """
        return (
            isinstance(context, Synchronisation)
            and context.averages
            and not getattr(self._ddp, "_comm_hooks", ())
            and not self._ddp.find_unused_parameters
            and not self._ddp.static_graph
            and getattr(self._ddp, "mixed_precision", None) is None
        )

    @contextlib.contextmanager
    def taking_over(self) -> Iterator[None]:
        """Run a block in which DistributedDataParallel leaves each rank its own gradients."""
        self._takes_over = True
        try:
            yield
        finally:
            self._takes_over = False

    @contextlib.contextmanager
    def averages(self, flag: bool) -> Iterator[None]:
        """Run a block in which backward passes average gradients over ranks, or with `flag` False do not."""
        ddp = self._ddp
        backward, forward = ddp.require_backward_grad_sync, ddp.require_forward_param_sync
        ddp.require_backward_grad_sync = flag and not self._takes_over
        try:
            yield
        finally:
            ddp.require_backward_grad_sync = backward
            if self._takes_over:
                # Without this, training's next forward pass would not broadcast buffers.
                ddp.require_forward_param_sync = forward

    def start(self, gradients: Sequence[Tensor]) -> Averages:
        """Begin to average gradients of one dtype and device over ranks, and return them to come."""
        group = self._ddp.process_group
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        flat.div_(torch.distributed.get_world_size(group))
        work = torch.distributed.all_reduce(flat, group=group, async_op=True)
        return Averages(flat, tuple(gradient.shape for gradient in gradients), work)


@dataclass(frozen=True)
class Synchronisation:
    """Makes contexts in which backward passes average gradients over ranks, or not, as in `no_sync`.

    Attributes:
        averager: Averages them.
        averages: Whether they do.
    """

    averager: Averager
    averages: bool

    def __call__(self) -> AbstractContextManager[None]:
        """Return a context."""
        return self.averager.averages(self.averages)


@dataclass(frozen=True)
class Averages:
    """Gradients that are being averaged.

    Attributes:
        flat: Their entries, one after another.
        shapes: Their shapes.
        work: The all-reduce.
    """

    flat: Tensor
    shapes: tuple[torch.Size, ...]
    work: torch.distributed.Work

    def result(self) -> list[Tensor]:
        """Return the averages once they are there; on a GPU, its stream waits and the host does not."""
        self.work.wait()
        parts = self.flat.split([shape.numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
