"""One measured step as a flat row of numbers on the device: its layout, its contents, and its status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lsmooth.estimators import rounding_lines
from lsmooth.join import Join
from lsmooth.precision import accumulation_dtype
from lsmooth.trace.layout import NOISE_SHARE, Field, Status

# Above this share of the shortest ‖gamma d‖, rounding of the interpolated points spoils the estimate.
RESOLUTION_SHARE = 0.01
# Two evaluations of the gradient at x_t may differ by these shares: of its change along the step, and of itself.
REPLAY_SHARE_OF_CHANGE = 0.1
REPLAY_SHARE_OF_GRADIENT = 0.01


class RowLayout:
    """The place of each quantity of a measured step in a flat row of numbers.

    Args:
        fields: The datasets of the trace.
        sizes: Length of every dimension except `step`.
        gammas: Interpolation points.
        real: Dtype in which the trace keeps norms, "float32" or "float64".

    Attributes:
        gammas: Interpolation points, (g,).
        largest: The largest number that the trace can hold; larger ones become infinite in the file.
        shapes: Shape of each quantity.
        places: Slice of the row that holds each quantity.
        joins: How the ranks' values of each quantity are joined.
        width: Number of values in a row.
        measured: The first `measured` values must be finite in a well measured step.
        optional: Slice of the values that may be NaN in a well measured step.
    """

    # Quantities that only the status needs, and the trace does not keep: the rounding error of interpolated points; the
    # norm of gradients that were there before the first backward; whether the step's gradient was edited past its
    # version counter; and by how much a second evaluation at x_t differs (0 where none was made).
    EXTRA: Mapping[str, Join] = {
        "rounding": Join.NORM,
        "foreign_grad": Join.SUM,
        "edited_grad": Join.SUM,
        "replay_error": Join.NORM,
    }
    HOST_FIELDS = ("time", "step")
    _LAST = ("lr", "status")

    def __init__(self, fields: Sequence[Field], sizes: Mapping[str, int], gammas: Sequence[float], real: str) -> None:
        self.gammas = np.asarray(gammas, dtype=np.float64)
        self._lines = rounding_lines(self.gammas)
        self._on: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.largest = torch.finfo(getattr(torch, real)).max
        own = [item for item in fields if not item.total_of and item.name not in (*self.HOST_FIELDS, *self._LAST)]
        self.shapes: dict[str, tuple[int, ...]] = {
            item.name: tuple(sizes[name] for name in item.dims[1:])
            for item in sorted(own, key=lambda item: not item.finite)
        }
        counts = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values()]
        self.measured = sum(counts[: sum(item.finite for item in own)])
        self.optional = slice(self.measured, sum(counts))
        self.shapes |= dict.fromkeys(self.EXTRA, ())
        # Learning rates may be tensors on the device, and leave it with the row.
        self.shapes |= {"lr": (sizes["group"],), "status": ()}
        self.joins: dict[str, Join] = {item.name: item.join for item in fields} | dict(self.EXTRA)
        self.places: dict[str, slice] = {}
        end = 0
        for name, shape in self.shapes.items():
            start, end = end, end + int(np.prod(shape, dtype=np.int64))
            self.places[name] = slice(start, end)
        self.width = end

    def view(self, row: Tensor, name: str) -> Tensor:
        """Return the part of a row (or of rows, along leading dimensions) that holds a quantity, in its shape."""
        part = row[..., self.places[name]]
        return part.view((*row.shape[:-1], *self.shapes[name]))

    def positions(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return gammas, (g,), and the matrix of `lsmooth.estimators.rounding_lines`, on the device of `like`."""
        key = like.device, like.dtype
        if key not in self._on:
            self._on[key] = torch.from_numpy(self.gammas).to(*key), torch.from_numpy(self._lines).to(*key)
        return self._on[key]

    def has(self, name: str) -> bool:
        """Say whether rows carry a quantity."""
        return name in self.places


class Row:
    """The numbers of one step, which quantities fill in.

    Args:
        layout: The place of each quantity.
        device: Device of the numbers.
        flags: Bits of `Status` that are known beforehand.

    Attributes:
        numbers: All values, (width,), float64 if the device has it.
        flags: Bits of `Status` known so far; quantities may add some.
        evaluated: Whether the step's loss was evaluated again at one point or more.
    """

    def __init__(self, layout: RowLayout, device: torch.device, flags: int = 0) -> None:
        self._layout = layout
        self.numbers = torch.zeros(layout.width, dtype=accumulation_dtype(device), device=device)
        self.numbers[layout.optional] = torch.nan
        self.flags = flags
        self.evaluated = False

    def __contains__(self, name: str) -> bool:
        return self._layout.has(name)

    def __getitem__(self, name: str) -> Tensor:
        """Return a view of the values of a quantity, in its shape; writing to it fills the row."""
        return self._layout.view(self.numbers, name)

    def put_lr(self, rates: Sequence[float | Tensor]) -> None:
        """Fill in the learning rate of each parameter group."""
        place = self["lr"]
        for i, lr in enumerate(rates):
            if isinstance(lr, Tensor):
                place[i].copy_(lr.detach().reshape(()), non_blocking=True)
            else:
                place[i].fill_(lr)

    def fail(self, loss: Tensor, rates: Sequence[float | Tensor]) -> None:
        """Fill the row of a step whose measurement failed: only loss and learning rates are not NaN."""
        self.numbers.fill_(torch.nan)
        for name in self._layout.EXTRA:
            self[name].zero_()
        self["loss"].copy_(loss)
        self.put_lr(rates)
        self.flags |= Status.NOT_REPEATED
        self.judge()

    def judge(self) -> Tensor:
        """Fill in the status of an otherwise complete row, on the device; return whether it is MEASURED, a scalar."""
        step_norm = self["step_norm"]
        still = (step_norm == 0).all()
        # `rounding` bounds the distance of the parameters from x_t + gamma d (see `WeightNorms`), apart from a part in
        # proportion to ‖gamma d‖ that is far below the limit. The shortest ‖gamma d‖ suffers most.
        shortest = torch.linalg.vector_norm(step_norm) * float(self._layout.gammas.min())
        coarse = ~still & (self["rounding"] > RESOLUTION_SHARE * shortest)
        most = min(self._layout.largest, torch.finfo(self.numbers.dtype).max)
        # False for NaN too.
        finite = (self.numbers[: self._layout.measured].abs() <= most).all()
        status = self.flags | still * int(Status.NO_DISPLACEMENT) | coarse * int(Status.BELOW_RESOLUTION)
        status = status | ~finite * int(Status.NON_FINITE)
        other = (self["foreign_grad"] != 0) | (self["edited_grad"] != 0)
        status = status | other * int(Status.OTHER_GRADIENT)
        # A closure that does not repeat inflates the change along the step too. So the error is also compared with ‖g‖.
        error, change = self["replay_error"], torch.linalg.vector_norm(self["grad_diff"][0])
        grad = torch.linalg.vector_norm(self["grad_norm"])
        noisy = self._note_noise(grad)
        differs = (error > REPLAY_SHARE_OF_CHANGE * change) | (error > REPLAY_SHARE_OF_GRADIENT * grad)
        status = status | (differs & (status == 0)) * int(Status.NOT_REPEATED)
        status = status | (noisy & (status == 0)) * int(Status.NOISY)
        well = status == 0
        self["status"].copy_(status + well * int(Status.MEASURED))
        return well

    def _note_noise(self, grad: Tensor) -> Tensor:
        """Fill in the rounding noise of Delta over all tensors, and say whether it spoils the estimate, a scalar.

        The noise is that of `lsmooth.estimators.rounding_noise`, for one step.

        Args:
            grad: ‖g‖, a scalar.
        """
        changes = torch.linalg.vector_norm(self["grad_diff"], dim=1)
        gammas, lines = self._layout.positions(changes)
        best = (changes / gammas).argmax()
        scale = changes.amax().clamp_(min=torch.finfo(changes.dtype).tiny)
        found = lines @ (changes / scale).square_()
        scatter = gammas.take(best) * found[2:].square().mean().sqrt_()
        noise = scale * torch.maximum(found[:2].amin(), scatter).sqrt_()
        noise = torch.minimum(noise, self["rounding_bound"] * grad)
        self["grad_diff_noise"].copy_(noise)
        # False for NaN too.
        return noise > NOISE_SHARE * changes.take(best)
