"""Where the curvature along a step sits: each block of layers moved by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.measure.norms import TensorNorms
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
        for block in self._blocks:
            self._move(block, replay, row, step)
        norms, products = self._norms.result_and_products()
        row["blocks/grad_diff"].copy_(norms["l2"])
        row["blocks/change"].copy_(products)
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
            self._add(mine, [step.gradient.tensors[i] for i, _ in mine], ends)

        replay.at_part(places, take)
        absent = [(i, step.gradient.tensors[i]) for i in ends if i not in arrived]
        with torch.no_grad():
            gone = [(i, first.neg()) for i, first in absent if first is not None]
        self._add(gone, [None] * len(gone), ends)

    def _add(
        self,
        gradients: Sequence[tuple[int, Tensor]],
        firsts: Sequence[Tensor | None],
        ends: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        """Take in gradients by position, less those at x_t."""
        positions = [i for i, _ in gradients]
        self._norms.add(positions, [g for _, g in gradients], firsts, [ends[i] for i in positions])

    def clear(self) -> None:
        self._norms.clear()
