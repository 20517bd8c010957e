"""Hands filled rows on in blocks: to the writer's thread, which decodes them, and to listeners."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsmooth.errors import TraceWarning
from lsmooth.measure.densities import DensityCounter
from lsmooth.measure.row import Row, RowLayout
from lsmooth.trace.layout import Status

# A block is handed over when it has this many rows, or this many seconds after the block before.
BLOCK_ROWS = 64
BLOCK_SECONDS = 3.0


@dataclass(frozen=True)
class GroupMeasurement:
    """Numbers of a well measured step for one group of parameter tensors; see `Measurement`.

    Attributes:
        smoothness: max over gamma of ‖Delta(gamma)‖2 / ‖gamma d‖2 over the group; NaN if the group did not move.
        grad_norm: ‖grad f(x_t)‖2 over the group.
        edge_ratio: ⟨Delta(1), d⟩ / -⟨g, d⟩ over the group; None without the endpoint.
    """

    smoothness: float
    grad_norm: float
    edge_ratio: float | None


@dataclass(frozen=True)
class Measurement:
    """Numbers of a well measured step that have reached the host, for progress lines and logs.

    Attributes:
        step: Optimizer step index.
        loss: f(x_t).
        grad_norm: ‖grad f(x_t)‖2 over all parameters.
        smoothness: The global estimate, max over gamma of ‖Delta(gamma)‖2 / ‖gamma d‖2.
        lr: The learning rate; the largest one of several parameter groups.
        critical_lr: lr times the first gamma at which the loss is above f(x_t); None if not measured.
        edge_ratio: ⟨Delta(1), d⟩ / -⟨g, d⟩ over all parameters; None without the endpoint.
        groups: Numbers of groups of parameters by name; empty unless a log asks for them.
    """

    step: int
    loss: float
    grad_norm: float
    smoothness: float
    lr: float
    critical_lr: float | None = None
    edge_ratio: float | None = None
    groups: Mapping[str, GroupMeasurement] = field(default_factory=dict)


class Listener(Protocol):
    """Receives each well measured step: `put` is called on the writer's thread, `send` on the training thread."""

    def put(self, measurement: Measurement) -> None:
        """Take a step."""

    def send(self) -> None:
        """Pass on the steps taken so far."""


class Writer(Protocol):
    """Writes blocks of rows on a thread of its own; see `BackgroundWriter`."""

    failure: str | None

    def put(self, block: Any, size: int = 0, steps: Sequence[int] = ()) -> None:
        """Take a block."""

    def problems(self) -> list[str]:
        """Return what went wrong since the last call."""


@dataclass
class _Block:
    rows: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


class Handover:
    """Collects rows on the device and passes them on in blocks, without making the training thread wait.

    Args:
        layout: The layout of rows.
        device: Device of rows.
        writer: Writes rows on a thread of its own.
        densities: Counts of all coordinates, which go to the writer with each block; None if they are not counted.
        listener: Receives each well measured step; None for nobody.
        groups: Positions of the parameters in each group of parameters that the listener receives.

    Attributes:
        layout: As above.
        latest: The last well measured step that has reached the host; None before the first.
    """

    def __init__(
        self,
        layout: RowLayout,
        device: torch.device,
        writer: Writer,
        densities: DensityCounter | None = None,
        listener: Listener | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.layout = layout
        self._groups = groups or {}
        self._listener = listener
        self._densities = densities
        self._device = device
        self._writer = writer
        self._block: _Block | None = None
        self._last = time.monotonic()
        # Findings of the writer's thread, which the training thread asks for.
        self._warnings: SimpleQueue[str] = SimpleQueue()
        self._edited = threading.Event()
        self._differs = threading.Event()
        self.latest: Measurement | None = None

    def new_row(self, flags: int = 0) -> Row:
        """Return an empty row on the device."""
        return Row(self.layout, self._device, flags)

    def add(self, row: Row, step: int, seconds: float) -> None:
        """Add a complete row; hand the block over when it is full or old."""
        if self._block is None:
            self._block = _Block()
        block = self._block
        block.rows.append(row.numbers)
        block.steps.append(step)
        block.times.append(seconds)
        if len(block.steps) == BLOCK_ROWS:
            self.flush()
        else:
            self.flush_if_old()

    def flush_if_old(self) -> None:
        """Hand over a block that has waited for longer than `BLOCK_SECONDS`; pass scalars and warnings on."""
        if self._listener is not None:
            self._listener.send()
        if self._block is not None and time.monotonic() - self._last > BLOCK_SECONDS:
            self.flush()
        elif self._writer.failure is not None:
            # After a failure there may be no further block whose handover would pass the warning on.
            self.tell()

    def flush(self) -> None:
        """Hand over the present block, and pass scalars and warnings on."""
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
        """Pass scalars and warnings of the writer's thread on, from the training thread."""
        if self._listener is not None:
            self._listener.send()
        for problem in self._writer.problems():
            warnings.warn(problem, TraceWarning, stacklevel=2)
        for _ in range(self._warnings.qsize()):
            warnings.warn(self._warnings.get(), stacklevel=2)

    def found_edited_gradient(self) -> bool:
        """Say whether any row that has reached the host shows a gradient edited past its version counter."""
        return self._edited.is_set()

    def found_difference(self) -> bool:
        """Say whether at any step a second evaluation at x_t differed from the first."""
        return self._differs.is_set()

    # --- on the writer's thread ---

    def _decode(self, numbers: NDArray[np.float64], block: _Block) -> dict[str, NDArray[Any]]:
        layout = self.layout
        rows: dict[str, NDArray[Any]] = {
            name: numbers[:, place].reshape(len(numbers), *layout.shapes[name]) for name, place in layout.places.items()
        }
        extra = {name: rows.pop(name) for name in RowLayout.EXTRA}
        rows["step"] = np.asarray(block.steps, dtype=np.int64)
        rows["time"] = np.asarray(block.times)
        rows["status"] = rows["status"].astype(np.uint16)
        if extra["edited_grad"].any():
            self._edited.set()
        self._check_replay(rows, extra)
        self._note_latest(rows)
        return rows

    def _note_latest(self, rows: dict[str, NDArray[Any]]) -> None:
        well = np.flatnonzero(rows["status"] == Status.MEASURED)
        for i in well if self._listener is not None else well[-1:]:
            row = {name: values[i] for name, values in rows.items()}
            whole = _of_group(row, self.layout.gammas, slice(None))
            lr = float(rows["lr"][i].max())
            critical = lr * float(rows["critical_gamma"][i]) if "critical_gamma" in rows else None
            self.latest = Measurement(
                step=int(rows["step"][i]),
                loss=float(rows["loss"][i]),
                grad_norm=whole.grad_norm,
                smoothness=whole.smoothness,
                lr=lr,
                critical_lr=critical,
                edge_ratio=whole.edge_ratio,
                groups={name: _of_group(row, self.layout.gammas, where) for name, where in self._groups.items()},
            )
            if self._listener is not None:
                self._listener.put(self.latest)

    def _check_replay(self, rows: dict[str, NDArray[Any]], extra: dict[str, NDArray[Any]]) -> None:
        for i in np.flatnonzero((extra["replay_error"] > 0) & ((rows["status"] & Status.NOT_REPEATED) != 0)):
            error = float(extra["replay_error"][i])
            change = float(np.linalg.norm(rows["grad_diff"][i, 0]))
            if not self._differs.is_set():
                self._differs.set()
                self._warnings.put(
                    f"At step {rows['step'][i]} the gradient at x_t, evaluated a second time, differed by {error:.2g} "
                    f"in norm, while along the step it changed by {change:.2g}: the closure does not compute the same "
                    "function twice (it draws a new batch, reads an input that the loop has overwritten, keeps a "
                    "state, uses kernels that are not deterministic, or the loop adds terms to the loss that are not "
                    "watched); such steps are flagged as not repeated, and each measured step is checked from now on."
                )


def _of_group(row: Mapping[str, NDArray[Any]], gammas: NDArray[Any], where: Sequence[int] | slice) -> GroupMeasurement:
    """Return the numbers of a row for the parameters at some positions."""
    moved = np.linalg.norm(row["step_norm"][where])
    changes = np.linalg.norm(row["grad_diff"][:, where], axis=-1)
    edge = None
    with np.errstate(divide="ignore", invalid="ignore"):
        if "curvature/change_next" in row:
            edge = float(row["curvature/change_next"][where].sum() / -row["curvature/slope"][where].sum())
        smoothness = float((changes / (gammas * moved)).max()) if moved > 0 else np.nan
    return GroupMeasurement(smoothness, float(np.linalg.norm(row["grad_norm"][where])), edge)


def _fetch(rows: Tensor, dtype: torch.dtype) -> Callable[[], NDArray[Any]]:
    """Start copying rows to the host; return a function for another thread, which waits for them."""
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
