"""The gradient of a step: read where training left it, or copied where the loop changes it before its use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.measure.norms import Kind, TensorNorms
from lsmooth.parallel.shards import local
from lsmooth.replay.graphs import owned_by_graphs

if TYPE_CHECKING:
    from lsmooth.measure.row import Row

# About this many entries of each tensor are compared to detect edits.
_ENTRIES = 16


class GradientKeeper:
    """Decides, over a run, whether gradients of steps are borrowed or copied.

    A borrowed gradient is read in `.grad`, where training left it. Once the loop is seen to change a gradient before or
    in its optimizer step (clipping does), gradients are copied for the rest of the run.

    Args:
        parameters: The measured parameters.
        two_norms: Computes 2-norms.
        dual_norms: Computes the norms that gradients are measured in.
        may_borrow: Whether nothing but autograd writes to `.grad` during backward.
        edited_unseen: Says whether an earlier step's gradient turned out to be edited past its version counter.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        two_norms: TensorNorms,
        dual_norms: TensorNorms,
        *,
        may_borrow: bool,
        edited_unseen: Callable[[], bool],
    ) -> None:
        self.parameters = parameters
        self.two_norms = two_norms
        self.dual_norms = dual_norms
        self._borrows = may_borrow
        self._edited_unseen = edited_unseen
        # Whether CUDA graphs overwrite gradients at each replay; None until the first gradient has been seen.
        self._in_graphs: bool | None = None

    def borrows(self, scaled: bool) -> bool:
        """Say whether the next gradient is borrowed; `scaled` says whether it carries a scaler's factor."""
        if self._in_graphs is None:
            self._in_graphs = owned_by_graphs(local(p.grad) for p in self.parameters if p.grad is not None)
        # A scaler unscales gradients in place before they are used.
        return self._borrows and not self._in_graphs and not scaled and not self._edited_unseen()

    @property
    def in_graphs(self) -> bool:
        """Whether CUDA graphs overwrite gradients at each evaluation."""
        return bool(self._in_graphs)

    def stop_borrowing(self) -> None:
        """Copy gradients from now on, since the loop was seen to change one."""
        self._borrows = False

    def found_in_graphs(self) -> None:
        """Note that the loop has begun to use CUDA graphs, in whose memory gradients now lie."""
        self._in_graphs = True


class StepGradient:
    """The gradient of one step at x_t.

    Args:
        keeper: Decides whether the gradient is borrowed.
        accumulates: Whether `.grad` also holds an earlier step's gradient. Then this step's gradient is evaluated again
            at x_t.

    Attributes:
        tensors: Gradient of each parameter by position, this process's shard of it; None if none arrived.
        borrowed: Training's own `.grad` tensors among `tensors`, by position, each with its imprint.
        norms: Norms of all tensors by kind, (p,) each; filled in by `read_again`.
        changed: Whether training changed the gradient, so that it must be evaluated again at x_t; known after
            `read_again`.
    """

    def __init__(self, keeper: GradientKeeper, *, accumulates: bool = False) -> None:
        self._keeper = keeper
        self._accumulates = accumulates
        self.tensors: list[Tensor | None] = [None] * len(keeper.parameters)
        self.borrowed: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        self.norms: dict[Kind, Tensor] = {}
        self.changed = False
        # 2-norms of all tensors, and some of their entries, at the time of borrowing.
        self._norms_then: Tensor | None = None
        self._entries_then: Tensor | None = None

    @property
    def in_graphs(self) -> bool:
        """Whether CUDA graphs overwrite gradients at each evaluation."""
        return self._keeper.in_graphs

    def take(self, scaled: bool) -> None:
        """Borrow or copy what a backward pass left in `.grad`; `scaled` says whether it carries a scaler's factor."""
        if self._accumulates:
            return
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        borrows = self._keeper.borrows(scaled)
        before, self.borrowed = self.borrowed, {}
        for position, parameter in enumerate(self._keeper.parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            if borrows:
                self.borrowed[position] = (gradient, imprint(gradient))
                self.tensors[position] = gradient.detach()
                continue
            gradient = local(gradient).detach()
            kept = self.tensors[position]
            if kept is None or position in before:
                kept = self.tensors[position] = torch.empty_like(gradient)
            targets.append(kept)
            sources.append(gradient)
        if targets:
            torch._foreach_copy_(targets, sources)
        self._norms_then = self._norms(self._keeper.two_norms)["l2"] if self.borrowed else None
        self._entries_then = self._entries() if self.borrowed else None

    def read_again(self, row: Row) -> bool:
        """Compute the norms of the gradient as it is now, and return whether it was changed since it was borrowed.

        Writes through `.data` go past the version counter. They show in the norms, or else in the compared entries
        (other signs, another order). On the CPU the comparison is read at once; on other devices, which would have to
        be waited for, the row is flagged.
        """
        if self._accumulates:
            self.changed = True
            return True
        self.norms = self._norms(self._keeper.dual_norms)
        self.changed = any(imprint(gradient) != then for gradient, then in self.borrowed.values())
        if not self.changed and self._norms_then is not None:
            assert self._entries_then is not None
            differ = _differ(self.norms["l2"], self._norms_then) | _differ(self._entries(), self._entries_then)
            if differ.device.type == "cpu":
                self.changed = bool(differ.numpy())
            else:
                row["edited_grad"].copy_(differ)
        if self.changed:
            self._keeper.stop_borrowing()
            for position in self.borrowed:
                self.tensors[position] = None
            self.borrowed = {}
        return self.changed

    def drop(self) -> None:
        """Forget the gradient, which will be evaluated again."""
        self.tensors = [None] * len(self.tensors)
        self.borrowed = {}

    def replace(self, gradients: Mapping[int, Tensor]) -> None:
        """Set gradients that were evaluated again at x_t, by position, and compute their norms."""
        for position, gradient in gradients.items():
            self.tensors[position] = gradient
        self.norms = self._norms(self._keeper.dual_norms)

    def overwritten(self, positions: Sequence[int], gradients: Sequence[Tensor]) -> bool:
        """Say whether an evaluation's gradients lie in the memory of the borrowed ones, whose values are lost then.

        This happens once, when the loop has begun to use CUDA graphs; gradients of later steps are copied.
        """
        if not self.borrowed or not any(
            # The address of an empty tensor is 0.
            position in self.borrowed and self.borrowed[position][1][0] == gradient.data_ptr() != 0
            for position, gradient in zip(positions, gradients, strict=True)
        ):
            return False
        self._keeper.found_in_graphs()
        return True

    def _entries(self) -> Tensor:
        """Return a few entries of each tensor as they are now."""
        flat = [gradient.reshape(-1) for gradient in self.tensors if gradient is not None]
        return torch.cat([entries[:: max(1, entries.numel() // _ENTRIES)] for entries in flat])

    def _norms(self, norms: TensorNorms) -> dict[Kind, Tensor]:
        arrived = [(i, gradient) for i, gradient in enumerate(self.tensors) if gradient is not None]
        norms.add([i for i, _ in arrived], [gradient for _, gradient in arrived], [None] * len(arrived))
        return norms.result()


def _differ(now: Tensor, then: Tensor) -> Tensor:
    """Return whether any numbers differ, NaN being equal to NaN; a bool scalar on their device."""
    return ((now != then) & ~(now.isnan() & then.isnan())).any()


def imprint(gradient: Tensor) -> tuple[int, int]:
    """Return the gradient's address and version counter, one of which changes when it is replaced or written to."""
    if gradient.layout != torch.strided:
        # A sparse gradient has no single address, and is not measured.
        return id(gradient), gradient._version
    part = local(gradient)
    return part.data_ptr(), part._version + (gradient._version if part is not gradient else 0)
