"""Filled rows leave the device in blocks: for the writer's thread, which decodes them, and for listeners."""

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

# A block is handed over when it is full, or when this many seconds have passed since the last one was.
BLOCK_ROWS = 64
BLOCK_SECONDS = 3.0


@dataclass(frozen=True)
class GroupMeasurement:
    """A well measured step as a group of parameter tensors has it; see `Measurement`.

    Attributes:
        smoothness: max over gamma of ‖Delta(gamma)‖2 / ‖gamma d‖2, of the group's parts; NaN where it did not move.
        grad_norm: ‖grad f(x_t)‖2.
        edge_ratio: ⟨Delta(1), d⟩ / -⟨g, d⟩; None without the endpoint.
    """

    smoothness: float
    grad_norm: float
    edge_ratio: float | None


@dataclass(frozen=True)
class Measurement:
    """The last well measured step that has reached the host, for progress lines.

    Attributes:
        step: Optimizer step index.
        loss: f(x_t).
        grad_norm: ‖grad f(x_t)‖2 over all parameters.
        smoothness: The global estimate, max over gamma of ‖Delta(gamma)‖2 / ‖gamma d‖2.
        lr: The learning rate, the largest of several groups'.
        critical_lr: lr times the first gamma at which the loss is above its start; None where it is not measured.
        edge_ratio: ⟨Delta(1), d⟩ / -⟨g, d⟩ over all parameters; None without the endpoint.
        groups: The same of groups of parameters, where a log asks for them.
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
    """Hears of each well measured step: `put` on the writer's thread, `send` on the training thread."""

    def put(self, measurement: Measurement) -> None:
        """Take in a step."""

    def send(self) -> None:
        """Pass on what has come in."""


class Writer(Protocol):
    """Takes blocks of rows on a thread of its own; see `BackgroundWriter`."""

    failure: str | None

    def put(self, block: Any, size: int = 0, steps: Sequence[int] = ()) -> None:
        """Take a block in."""

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
        layout: What a row is made of.
        device: Where rows are filled.
        writer: Who writes them, on its thread.
        densities: Counts of all coordinates, which go to the writer with each block.
        listener: Who is to hear of each well measured step.
        groups: Positions of the parameters of each group that the listener hears of.
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
        # What the writer's thread has found out, for the training thread to ask for.
        self._warnings: SimpleQueue[str] = SimpleQueue()
        self._edited = threading.Event()
        self._differs = threading.Event()
        self.latest: Measurement | None = None

    def new_row(self, flags: int = 0) -> Row:
        """Return an empty row to be filled, on the device."""
        return Row(self.layout, self._device, flags)

    def add(self, row: Row, step: int, seconds: float) -> None:
        """Take in a filled and judged row; hand the block over when it is full or old."""
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
        """Hand over what has waited for longer than `BLOCK_SECONDS`, and pass on what has come back."""
        if self._listener is not None:
            self._listener.send()
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
        if self._listener is not None:
            self._listener.send()
        for problem in self._writer.problems():
            warnings.warn(problem, TraceWarning, stacklevel=2)
        for _ in range(self._warnings.qsize()):
            warnings.warn(self._warnings.get(), stacklevel=2)

    def found_edited_gradient(self) -> bool:
        """Say whether the rows that have reached the host show a gradient that was changed unseen, in any step."""
        return self._edited.is_set()

    def found_difference(self) -> bool:
        """Say whether a second evaluation at x_t was found to differ from the first, in any step."""
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
                    "function twice (it draws a new batch, keeps a state, uses kernels that are not deterministic, or "
                    "the loop adds terms to it outside of what is watched); such steps are flagged as not repeated, "
                    "and each measured step is checked from now on."
                )


def _of_group(row: Mapping[str, NDArray[Any]], gammas: NDArray[Any], where: Sequence[int] | slice) -> GroupMeasurement:
    """Return what a row says of the parameters at some positions."""
    moved = np.linalg.norm(row["step_norm"][where])
    changes = np.linalg.norm(row["grad_diff"][:, where], axis=-1)
    edge = None
    with np.errstate(divide="ignore", invalid="ignore"):
        if "curvature/change_next" in row:
            edge = float(row["curvature/change_next"][where].sum() / -row["curvature/slope"][where].sum())
        smoothness = float((changes / (gammas * moved)).max()) if moved > 0 else np.nan
    return GroupMeasurement(smoothness, float(np.linalg.norm(row["grad_norm"][where])), edge)


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
