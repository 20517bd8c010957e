"""Rows of measurements: filled on the device, handed over in blocks, judged and written on another thread."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsmooth.densities import DensityCounter
from lsmooth.distributed import SilentWriter
from lsmooth.errors import TraceWarning
from lsmooth.integrations.scalars import Scalars
from lsmooth.join import Join
from lsmooth.norms import accumulation_dtype
from lsmooth.trace.background import BackgroundWriter
from lsmooth.trace.layout import Field, Status

# A block is handed over when it is full, or when this many seconds have passed since the last one was.
BLOCK_ROWS = 64
BLOCK_SECONDS = 3.0
# Above this share of the shortest ‖gamma d‖, rounding of the interpolated points spoils the estimate.
RESOLUTION_SHARE = 0.01
# The gradient's change along the step must stand out this clearly from what evaluating it twice at x_t differs by.
_REPLAY_SHARE = 0.1


class RowLayout:
    """Where each device-side quantity of a measured step stands in one flat row of numbers.

    Args:
        fields: The datasets of the trace.
        sizes: Length of every dimension but `step`.
    """

    # Quantities that only the judgement of a row needs: the rounding error of an interpolated point; the norm of
    # gradients that were there before the first backward; whether the step's own was changed unseen before it was
    # measured; what a replay at x_t differs by (0 where none was made).
    EXTRA: Mapping[str, Join] = {
        "rounding": Join.NORM,
        "foreign_grad": Join.SUM,
        "edited_grad": Join.SUM,
        "replay_error": Join.NORM,
    }
    HOST_FIELDS = ("time", "step")
    _LAST = ("lr", "status")

    def __init__(self, fields: Sequence[Field], sizes: dict[str, int]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {
            item.name: tuple(sizes[name] for name in item.dims[1:])
            for item in fields
            if not item.total_of and item.name not in (*self.HOST_FIELDS, *self._LAST)
        }
        # Up to here, numbers that must be finite for a step to be measured well.
        self.measured = sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values())
        self.shapes |= dict.fromkeys(self.EXTRA, ())
        self.joins: dict[str, Join] = {item.name: item.join for item in fields} | self.EXTRA
        # Learning rates may be tensors on the device; they travel with the rest.
        self.shapes |= {"lr": (sizes["group"],), "status": ()}
        self.places: dict[str, slice] = {}
        end = 0
        for name, shape in self.shapes.items():
            start, end = end, end + int(np.prod(shape, dtype=np.int64))
            self.places[name] = slice(start, end)
        self.width = end

    def view(self, row: Tensor, name: str) -> Tensor:
        """Return the part of a row, or of rows, that holds a quantity, in its shape."""
        part = row[..., self.places[name]]
        return part.view((*row.shape[:-1], *self.shapes[name]))

    def has(self, name: str) -> bool:
        """Say whether rows carry a quantity."""
        return name in self.places


@dataclass(frozen=True)
class Measurement:
    """The last well measured step that has reached the host, for progress lines.

    Attributes:
        step: Optimizer step index.
        loss: f(x_t).
        grad_norm: ‖grad f(x_t)‖2 over all parameters.
        smoothness: The global estimate, max over gamma of ‖Delta(gamma)‖2 / ‖gamma d‖2.
        lr: The learning rate, the largest of several groups'.
    """

    step: int
    loss: float
    grad_norm: float
    smoothness: float
    lr: float


@dataclass
class _Block:
    rows: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


class Handover:
    """Collects rows on the device and passes them on in blocks, without making the training thread wait.

    Args:
        layout: What a row is made of.
        gammas: Interpolation points.
        device: Where rows are filled.
        writer: Who writes them, on its thread.
        real: What the trace keeps norms in, "float32" or "float64".
        densities: Counts of all coordinates, which go to the writer with each block.
        scalars: Who is to hear of each well measured step.
    """

    def __init__(
        self,
        layout: RowLayout,
        gammas: Sequence[float],
        device: torch.device,
        writer: BackgroundWriter | SilentWriter,
        real: str,
        densities: DensityCounter | None,
        scalars: Scalars | None = None,
    ) -> None:
        self.layout = layout
        self._scalars = scalars
        self._densities = densities
        # What is larger becomes infinite in the file.
        self._most = min(torch.finfo(getattr(torch, real)).max, torch.finfo(accumulation_dtype(device)).max)
        self._gammas = np.asarray(gammas)
        self._device = device
        self._writer = writer
        self._block: _Block | None = None
        self._last = time.monotonic()
        self._told: str | None = None
        self.latest: Measurement | None = None
        # Whether a gradient was found to have been changed unseen; set on the writer's thread.
        self.gradient_edited = False

    def new_row(self) -> Tensor:
        """Return an empty row to be filled, float64 (width,) on the device."""
        return torch.zeros(self.layout.width, dtype=accumulation_dtype(self._device), device=self._device)

    def judge(self, row: Tensor, flags: int) -> Tensor:
        """Fill in the status of an otherwise filled row, `flags` being known already; return whether it is MEASURED."""
        view = self.layout.view
        step_norm = view(row, "step_norm")
        still = (step_norm == 0).all()
        # `rounding` bounds the distance of the parameters from x_t + gamma d, see `Recorder._rounding`, but for a part
        # in proportion to ‖gamma d‖, which is far below the limit. The shortest stretch suffers most.
        shortest = torch.linalg.vector_norm(step_norm) * float(self._gammas.min())
        coarse = ~still & (view(row, "rounding") > RESOLUTION_SHARE * shortest)
        # False for NaN, too.
        finite = (row[: self.layout.measured].abs() <= self._most).all()
        status = flags | still * int(Status.NO_DISPLACEMENT) | coarse * int(Status.BELOW_RESOLUTION)
        status = status | ~finite * int(Status.NON_FINITE)
        other = (view(row, "foreign_grad") != 0) | (view(row, "edited_grad") != 0)
        status = status | other * int(Status.OTHER_GRADIENT)
        well = status == 0
        view(row, "status").copy_(status + well * int(Status.MEASURED))
        return well

    def add(self, row: Tensor, step: int, seconds: float) -> None:
        """Take in a filled and judged row; hand the block over when it is full or old."""
        if self._block is None:
            self._block = _Block()
        block = self._block
        block.rows.append(row)
        block.steps.append(step)
        block.times.append(seconds)
        if len(block.steps) == BLOCK_ROWS:
            self.flush()
        else:
            self.flush_if_old()

    def flush_if_old(self) -> None:
        """Hand over what has waited for longer than `BLOCK_SECONDS`, and pass on what has come back."""
        if self._scalars is not None:
            self._scalars.send()
        if self._block is not None and time.monotonic() - self._last > BLOCK_SECONDS:
            self.flush()
        elif self._writer.failure is not None:
            # No block may come any more, with which to tell.
            self.tell()

    def flush(self) -> None:
        """Hand over what there is, and tell the user what the writer had to say."""
        block, self._block = self._block, None
        self._last = time.monotonic()
        if block is not None:
            fetch = _fetch(torch.stack(block.rows), torch.float64)
            size, steps = len(block.steps) * self.layout.width * 8, block.steps
            block.rows.clear()
            densities = self._densities
            if densities is None:
                self._writer.put(lambda: (self._decode(fetch(), block),), size, steps)
            else:
                counts = densities.snapshot()
                fetch_counts = _fetch(counts, torch.int64)
                self._writer.put(
                    lambda: (self._decode(fetch(), block), densities.unpacked(fetch_counts())),
                    size + counts.numel() * 8,
                    steps,
                )
        self.tell()

    def tell(self) -> None:
        """Pass on, from the training thread, what the writer's found: scalars, and what went wrong."""
        if self._scalars is not None:
            self._scalars.send()
        for problem in self._writer.problems():
            warnings.warn(problem, TraceWarning, stacklevel=2)
        told, self._told = self._told, None
        if told is not None:
            warnings.warn(told, stacklevel=2)

    def _decode(self, numbers: NDArray[np.float64], block: _Block) -> dict[str, NDArray[Any]]:
        layout = self.layout
        rows: dict[str, NDArray[Any]] = {
            name: numbers[:, place].reshape(len(numbers), *layout.shapes[name]) for name, place in layout.places.items()
        }
        extra = {name: rows.pop(name) for name in RowLayout.EXTRA}
        rows["step"] = np.asarray(block.steps, dtype=np.int64)
        rows["time"] = np.asarray(block.times)
        rows["status"] = rows["status"].astype(np.uint8)
        self.gradient_edited |= bool(extra["edited_grad"].any())
        self._check_replay(rows, extra)
        self._note_latest(rows)
        return rows

    def _note_latest(self, rows: dict[str, NDArray[Any]]) -> None:
        well = np.flatnonzero(rows["status"] == Status.MEASURED)
        for i in well if self._scalars is not None else well[-1:]:
            moved = np.linalg.norm(rows["step_norm"][i])
            changes = np.linalg.norm(rows["grad_diff"][i], axis=-1)
            self.latest = Measurement(
                step=int(rows["step"][i]),
                loss=float(rows["loss"][i]),
                grad_norm=float(np.linalg.norm(rows["grad_norm"][i])),
                smoothness=float((changes / (self._gammas * moved)).max()),
                lr=float(rows["lr"][i].max()),
            )
            if self._scalars is not None:
                self._scalars.put(self.latest)

    def _check_replay(self, rows: dict[str, NDArray[Any]], extra: dict[str, NDArray[Any]]) -> None:
        for i in np.flatnonzero((extra["replay_error"] > 0) & (rows["status"] == Status.MEASURED)):
            error = float(extra["replay_error"][i])
            change = float(np.linalg.norm(rows["grad_diff"][i, 0]))
            if error > _REPLAY_SHARE * change:
                self._told = (
                    f"At step {rows['step'][i]} the gradient at x_t, evaluated a second time, differed by {error:.2g} "
                    f"in norm, while along the step it changed by {change:.2g}: the closure does not compute the same "
                    "function twice (it draws a new batch, keeps a state, uses kernels that are not deterministic, or "
                    "the loop adds terms to it outside of what is watched), so that these estimates measure that "
                    "difference too."
                )


def _fetch(rows: Tensor, dtype: torch.dtype) -> Callable[[], NDArray[Any]]:
    """Start copying rows to the host, and return a callable that waits for them, to be called on another thread."""
    if rows.device.type != "cuda":
        return lambda: rows.to("cpu", dtype).numpy()
    host = torch.empty(rows.shape, dtype=rows.dtype, device="cpu", pin_memory=True)
    host.copy_(rows, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(rows.device))

    def wait() -> NDArray[Any]:
        copied.synchronize()
        return host.to(dtype).numpy()

    return wait
