"""Gradients of replicas are averaged over ranks and handed on while a backward pass is still running."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from lsmooth.parallel.averaging import Averager, Averages
from lsmooth.replay.arrivals import Arrivals


class AveragedArrivals(Arrivals):
    """Averages gradients over ranks as they arrive, and hands on the averages.

    Which gradients are averaged together, and in which order, is settled beforehand, from what is the same on all
    ranks. One group is under way while the next one arrives. A gradient that has not arrived at the end counts as 0.

    Args:
        parameters: The measured parameters.
        expected: Number of parts in which each gradient arrives, on every rank those of the same parameters.
        bucket_bytes: Gradients are averaged together once they are this large.
        averager: Averages them.
    """

    def __init__(
        self, parameters: Sequence[Tensor], expected: Mapping[Tensor, int], bucket_bytes: int, averager: Averager
    ) -> None:
        super().__init__(parameters, expected, bucket_bytes)
        self._averager = averager
        # The last layers' gradients arrive first.
        positions = [i for i in reversed(range(len(parameters))) if expected.get(parameters[i], 0)]
        self._groups = list(_grouped(parameters, positions, bucket_bytes))
        self._group_of = {position: place for place, group in enumerate(self._groups) for position in group}
        self._open: list[int] = []
        self._next = 0
        self._under_way: tuple[Sequence[int], Averages] | None = None

    def _begin(self, consume: Callable[[Sequence[int], Sequence[Tensor]], None]) -> None:
        super()._begin(consume)
        self._open, self._next, self._under_way = [len(group) for group in self._groups], 0, None

    def _completed(self, position: int) -> None:
        self._open[self._group_of[position]] -= 1
        while self._next < len(self._groups) and not self._open[self._next]:
            self._start_next()

    def _end(self) -> None:
        while self._next < len(self._groups):
            self._start_next()
        self._hand_on()
        super()._end()

    @torch.no_grad()
    def _start_next(self) -> None:
        group = self._groups[self._next]
        self._next += 1
        parameters = [self._parameters[i] for i in group]
        averages = self._averager.start([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        self._hand_on()
        self._under_way = group, averages

    @torch.no_grad()
    def _hand_on(self) -> None:
        if self._under_way is not None and self._consume is not None:
            group, averages = self._under_way
            self._under_way = None
            self._consume(group, averages.result())


def _grouped(parameters: Sequence[Tensor], positions: Sequence[int], least_bytes: int) -> Iterator[list[int]]:
    """Yield runs of positions whose parameters share dtype and device, each of `least_bytes` but for the last ones."""
    for _, alike in groupby(positions, key=lambda i: (parameters[i].dtype, parameters[i].device)):
        group: list[int] = []
        size = 0
        for position in alike:
            group.append(position)
            size += parameters[position].nbytes
            if size >= least_bytes:
                yield group
                group, size = [], 0
        if group:
            yield group
