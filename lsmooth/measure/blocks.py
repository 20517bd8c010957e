"""Where the curvature along a step sits: each block of layers moved by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.measure.norms import TensorNorms, piece_size
from lsmooth.measure.products import products_with_step
from lsmooth.measure.quantities import Quantity
from lsmooth.measure.row import Row
from lsmooth.replay.evaluation import Replay
from lsmooth.trace.layout import Status

if TYPE_CHECKING:
    from lsmooth.loop.step import Step


class BlockCurvature(Quantity):
    """⟨Delta_S, d_S⟩ and ‖Delta_S‖2 of each block S of tensors that moves alone.

    With d_S the block's own part of the step, Delta_S = grad_S f(x_t + d_S) - grad_S f(x_t), so that on a quadratic
    ⟨Delta_S, d_S⟩ = ⟨d_S, H_SS d_S⟩. The rest of ⟨grad_S f(x_{t+1}) - grad_S f(x_t), d_S⟩ is what other blocks' steps
    add. It takes one evaluation more a block.

    Args:
        blocks: Positions of the parameters of each block.
        asks_for: Says at which steps blocks are moved.
        two_norms: Takes 2-norms.
    """

    def __init__(
        self, blocks: Sequence[Sequence[int]], asks_for: Callable[[int], bool], two_norms: TensorNorms
    ) -> None:
        self._blocks = [frozenset(block) for block in blocks]
        self._asks_for = asks_for
        self._norms = two_norms

    def further(self, replay: Replay, row: Row, step: Step) -> None:
        if not self._asks_for(step.number):
            return
        row["blocks/change"].zero_()
        row["blocks/grad_diff"].zero_()
        for block in self._blocks:
            self._move(block, replay, row, step)
        row["blocks/grad_diff"].copy_(self._norms.result()["l2"])
        if step.scale is not None:
            row["blocks/change"].div_(step.scale)
            row["blocks/grad_diff"].div_(step.scale)

    def _move(self, block: frozenset[int], replay: Replay, row: Row, step: Step) -> None:
        places = [place for place, position in enumerate(step.active) if position in block]
        ends = {step.active[p]: (step.segment.start[p], step.segment.stop[p]) for p in places}
        arrived: set[int] = set()

        def take(positions: Sequence[int], gradients: Sequence[Tensor]) -> None:
            if step.gradient.overwritten(positions, gradients):
                row.flags |= Status.OTHER_GRADIENT
                return
            mine = [(i, g) for i, g in zip(positions, gradients, strict=True) if i in ends]
            arrived.update(i for i, _ in mine)
            self._add(mine, [step.gradient.tensors[i] for i, _ in mine], ends, row)

        replay.at_part(places, take)
        absent = [(i, step.gradient.tensors[i]) for i in ends if i not in arrived]
        with torch.no_grad():
            gone = [(i, first.neg()) for i, first in absent if first is not None]
        self._add(gone, [None] * len(gone), ends, row)

    def _add(
        self,
        gradients: Sequence[tuple[int, Tensor]],
        firsts: Sequence[Tensor | None],
        ends: dict[int, tuple[Tensor, Tensor]],
        row: Row,
    ) -> None:
        """Take in gradients by position, less those at x_t."""
        if not gradients:
            return
        positions, tensors = [i for i, _ in gradients], [g for _, g in gradients]
        starts, stops = ([ends[i][end] for i in positions] for end in (0, 1))
        piece = piece_size(row.numbers.device)
        for position, product in zip(positions, products_with_step(tensors, firsts, starts, stops, piece), strict=True):
            row["blocks/change"][position] = product
        self._norms.add(positions, tensors, firsts)

    def clear(self) -> None:
        self._norms.clear()
