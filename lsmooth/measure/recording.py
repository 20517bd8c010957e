"""The trace of a run: opened on rank 0, written on a thread, and continued from a checkpoint."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lsmooth.measure.densities import DensityCounter
from lsmooth.measure.handover import Handover, Listener
from lsmooth.measure.row import RowLayout
from lsmooth.parallel.ranks import Ranks, SilentWriter
from lsmooth.trace.background import BackgroundWriter
from lsmooth.trace.header import Header
from lsmooth.trace.writer import Mode, TraceWriter

if TYPE_CHECKING:
    from lsmooth.loop.step import SkippedStep


class Recording:
    """Takes the rows of a run, and writes its trace on rank 0.

    Args:
        path: File that the trace is written to.
        header: The header of the trace.
        mode: "x" refuses an existing file, "w" replaces it, "a" continues the trace of this run.
        ranks: The processes that train together.
        parameters: The measured parameters.
        facts: Settings that must be equal on all ranks, besides those in the header.
        listener: Receives each well measured step; None for nobody.
        groups: Positions of the parameters in each group of parameters that the listener receives.

    Raises:
        TraceError: The folder of `path` is missing, or the file there may not be replaced or cannot be continued.

    Attributes:
        handover: Takes complete rows.
        densities: The counts of all coordinates; None if they are not counted.
        next_step: Index of the next optimizer step.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Header,
        mode: Mode,
        ranks: Ranks,
        parameters: Sequence[Tensor],
        facts: Mapping[str, Any],
        listener: Listener | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        device = parameters[0].device
        layout = RowLayout(header.fields(), header.sizes(), header.gammas, header.real)
        ranks.prepare(layout.places, {**layout.joins, **header.joins()}, device)
        self._ranks = ranks
        self._file: TraceWriter | None = ranks.agree(
            lambda: TraceWriter(path, header, mode),
            parameters=list(zip(header.parameters, header.parameter_sizes, strict=True)),
            datasets=[item.name for item in header.fields()],
            gammas=header.gammas,
            **facts,
        )
        next_step, refusal = ranks.from_rank_0(
            (self._file.next_step, self._file.refusal) if self._file is not None else None
        )
        self.next_step: int = next_step or 0
        self._refused = refusal is not None
        self._writer = BackgroundWriter(self._file) if self._file is not None else SilentWriter(refusal)
        self.densities = DensityCounter(parameters, device) if header.densities else None
        if self.densities is not None and self._file is not None and self._file.density is not None:
            self.densities.load(self.densities.packed(self._file.density))
        self.handover = Handover(layout, device, self._writer, self.densities, listener, groups)
        self.handover.tell()
        # In a continued trace, `time` continues from its last value.
        self._started = time.monotonic() - (self._file.seconds if self._file is not None else 0.0)

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far, without the gaps before it was resumed."""
        return time.monotonic() - self._started

    @property
    def failure(self) -> str | None:
        """Why nothing is recorded (any more), in one sentence; None while all is well."""
        return self._writer.failure

    @property
    def in_vain(self) -> bool:
        """Whether measuring is pointless, since nothing would be kept."""
        # All ranks must measure the same steps, and only rank 0 learns of a failure during the run.
        return self._refused or (self._ranks.alone and self._writer.failure is not None)

    def add_skipped(self, skipped: SkippedStep) -> None:
        """Add a row for a due step that was skipped."""
        row = self.handover.new_row(skipped.flags)
        row["loss"].copy_(skipped.loss)
        row.put_lr(skipped.lr)
        self._ranks.join(row.numbers)
        row.judge()
        self.handover.add(row, skipped.number, self.seconds)

    def flush(self) -> None:
        """Write all measured steps to the file, and wait for it."""
        self.handover.flush()
        self._writer.wait()
        self.handover.tell()

    def close(self, next_step: int, *, wait: bool = True) -> None:
        """Finish the trace; without `wait`, the writer's thread does so soon after."""
        self.handover.flush()
        self._writer.close(next_step, wait=wait)
        self.handover.tell()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue the trace; see `Recorder.state_dict`."""
        # If the process were killed, a checkpoint newer than the file would leave a gap in the trace.
        self.flush()
        state: dict[str, Any] = {"rows": self._file.rows if self._file is not None else 0, "seconds": self.seconds}
        if self.densities is not None:
            state["densities"] = self.densities.snapshot().cpu()
        return state

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, and drop the trace's rows from its step on; see `Recorder.load_state_dict`.

        Raises:
            TraceError: The trace is not that of the checkpoint, or has been written to already.
        """
        rows = state.get("rows")
        if self._file is not None:
            before = self._file.rows
            self._file.go_on_from(int(state["step"]), None if rows is None else int(rows))
            if self.densities is not None and self._file.next_step is not None:
                dropped = self._file.rows < before
                self._restore_densities(self._file, self.densities, state.get("densities"), dropped)
        # A checkpoint without the time continues from the time of the last kept row.
        seconds = state.get("seconds", self._file.seconds if self._file is not None else 0.0)
        self._started = time.monotonic() - float(seconds)

    @staticmethod
    def _restore_densities(file: TraceWriter, densities: DensityCounter, counts: Tensor | None, dropped: bool) -> None:
        """Restore the counts of a checkpoint; without them they begin anew, as dropped steps cannot be subtracted."""
        if counts is None and not dropped:
            return
        if counts is None and file.rows:
            warnings.warn(
                f"The checkpoint holds no densities, and the counts in {file.path} include steps that are now "
                "dropped: densities begin anew here; save recorder.state_dict() whole to keep them.",
                stacklevel=4,
            )
        if counts is None:
            counts = torch.zeros_like(densities.snapshot())
        densities.load(counts)
        file.density = densities.unpacked(densities.snapshot().cpu().numpy())
