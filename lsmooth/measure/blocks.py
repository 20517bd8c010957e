"""The curvature of each block of layers, which is moved along the step alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lsmooth.measure.delivery import Delivery
from lsmooth.measure.norms import TensorNorms
from lsmooth.measure.quantities import Quantity
from lsmooth.measure.row import Row
from lsmooth.replay.evaluation import Replay

if TYPE_CHECKING:
    from lsmooth.loop.step import Step


class BlockCurvature(Quantity):
    """⟨Delta_S, d_S⟩ and ‖Delta_S‖2 of each block S of tensors, moved alone.

    With d_S the block's part of the step, Delta_S = grad_S f(x_t + d_S) - grad_S f(x_t). On a quadratic,
    ⟨Delta_S, d_S⟩ = ⟨d_S, H_SS d_S⟩. The rest of ⟨grad_S f(x_{t+1}) - grad_S f(x_t), d_S⟩ is due to the steps of other
    blocks. Each block takes one more evaluation.

    Args:
        blocks: Positions of the parameters of each block.
        asks_for: Says whether blocks are moved at a step.
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

        def add(positions: Sequence[int], gradients: Sequence[Tensor]) -> None:
            own = [(i, g) for i, g in zip(positions, gradients, strict=True) if i in ends]
            firsts, steps = [step.gradient.tensors[i] for i, _ in own], [ends[i] for i, _ in own]
            self._norms.add([i for i, _ in own], [g for _, g in own], firsts, steps)

        delivery = Delivery(step, row, add)
        replay.at_part(places, delivery.take)
        missing = [(i, first) for i, first in delivery.missing() if i in ends]
        # Delta = -g there: ⟨-g, d⟩ is ⟨g, -d⟩, and the norms of both are the same.
        back = [ends[i][::-1] for i, _ in missing]
        self._norms.add([i for i, _ in missing], [first for _, first in missing], [None] * len(missing), back)

    def clear(self) -> None:
        self._norms.clear()
