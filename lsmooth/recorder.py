"""`Recorder`, the object that a training loop holds.

At a measured step, the gradient that backward left in `.grad` is noted, and x_t is copied just before
`optimizer.step()` changes it. Just after the step, the loss is evaluated again along the segment from x_t to x_{t+1}.
In loops that change the gradient before they use it, it is copied. Gradients of the evaluations are then consumed as
they arrive in the backward pass, so that no further full copy is held.

`lsmooth.loop` follows the training loop, `lsmooth.replay` evaluates a step's loss again, and `lsmooth.measure` turns
gradients into numbers.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from lsmooth.instrument import Instrument
from lsmooth.loop.backward import run_backward
from lsmooth.loop.description import header_of
from lsmooth.loop.faults import Faults
from lsmooth.loop.losses import Choice
from lsmooth.loop.recalls import Context
from lsmooth.loop.settings import DEFAULT_GAMMAS, Settings
from lsmooth.loop.subject import Subject
from lsmooth.measure.handover import Measurement
from lsmooth.measure.recording import Recording
from lsmooth.measure.scalars import Scalars, logged_groups
from lsmooth.parallel.ranks import Ranks
from lsmooth.replay.microbatch import Closure
from lsmooth.stepping import Stepping
from lsmooth.trace.background import wait_for_closed_writers
from lsmooth.trace.disk import path_text
from lsmooth.trace.grouping import By
from lsmooth.trace.html import table_html
from lsmooth.trace.writer import Mode

# Open recorders of this process. The references are weak, so that a notebook cell that is run again frees its model.
_OPEN_IN_PROCESS: weakref.WeakSet[Recorder] = weakref.WeakSet()
_numbers = itertools.count()


@atexit.register
def _close_all() -> None:
    """Close the recorders that a script left open."""
    for recorder in list(_OPEN_IN_PROCESS):
        recorder._close()


def _attached_to(model: nn.Module) -> list[Recorder]:
    """Return the open recorders on a model, oldest first; one call of `backward` serves all of them."""
    recorders = [recorder for recorder in list(_OPEN_IN_PROCESS) if recorder._subject.model is model]
    return sorted(recorders, key=lambda recorder: recorder._number)


def _taken_over(path: str | bytes | os.PathLike[str], mode: Mode) -> str:
    """Return `path` as a string; with mode "w", close this process's recorders that still write there."""
    path = path_text(path)
    if mode == "w":
        place = os.path.realpath(path)
        for recorder in list(_OPEN_IN_PROCESS):
            if recorder._place == place:
                recorder.close()
        wait_for_closed_writers(place)
    return path


class Recorder:
    """Measures local Lipschitz constants of the gradient while a model is being trained, and only watches.

    At a measured step from x_t to x_{t+1} = x_t + d, the gradient of the step's own loss (same batch, same randomness,
    same buffers) is evaluated at x_t + gamma d for each gamma, and ‖grad f(x_t + gamma d) - grad f(x_t)‖ and ‖d‖ of
    every parameter tensor are kept, from which all estimates are derived on reading (Crawshaw et al. 2022, Section
    5.2; Zhang et al. 2020, Section H.3). Parameters, optimizer state, buffers, gradients, random number generators and
    training flags are afterwards, bit for bit, what they would have been without the recorder.

    Args:
        model: The model being trained, compiled or not.
        optimizer: The optimizer whose steps are measured; all of its parameters are measured. Or several optimizers,
            such as `[muon, adamw]`, that take each step together on one loss: d is their joint displacement. A step is
            over when all of them have stepped, in any order. An optimizer that sits a step out is no longer waited for
            when the next backward pass begins, or when one that has stepped is about to step again.
        path: File that the trace is written to.
        every: Measure every `every` optimizer steps (an int), or the steps for which `every(step)` is true.
        gammas: Positions along the step, in (0, 1].
        endpoint: Also evaluate x_{t+1}: its loss, and the gradient's followed coordinates (Figure 3's definition).
        coordinates: Number of coordinates followed in each parameter tensor; 0 for none.
        seed: Seed of the choice of coordinates and, with `probe`, of the probes' randomness.
        probe: A closure, or several, each returning a loss on a fixed batch. Their mean, an estimate of the full loss
            F, is then measured in place of the step's own loss; `backward` is optional.
        probe_size: Number of examples in a probe, over all ranks; kept in the trace, for the noise scale.
        norms: Geometries to measure smoothness in. "l2" is always measured. "linf" takes the displacement's largest
            entry and the gradients' 1-norm, and fits sign methods and Adam. "spectral" takes the spectral and the
            nuclear norm of each matrix, and fits Muon and Scion; it computes singular values at each point, which waits
            for the GPU. A mapping from patterns of names to these, such as {"attn|mlp": "spectral", "*": "linf"}, is
            the geometry "layers": each tensor has its own norm, and the norm of all is the largest of them.
        densities: Also count all coordinates of each tensor by gradient and coordinate-wise estimate (Figure 3 for
            all). A measured step then holds two more numbers a coordinate; the trace grows by 144 KiB a tensor.
        critical: Also search for the first gamma, possibly beyond 1, at which the loss is above f(x_t); lr times this
            gamma is the critical learning rate. The search takes about two to ten forward passes, each of which waits
            for the GPU.
        blocks: Also move groups of layers alone, one evaluation each. Give the number of groups, or a grouping of
            parameters as for `by=`; or a pair of one of these and of the number of steps in between, such as
            ("module", 100).
        cuda_graphs: On a GPU, capture the evaluation at the first point as a CUDA graph, and play it back at the other
            points. The numbers are the same, and come several times sooner where launching kernels takes longer than
            running them (small models, small batches). No closure may wait for the GPU then, and the graph takes as
            much memory as another evaluation.
        offload: On a GPU, keep x_t and x_{t+1} in pinned memory of the host. The numbers are the same. It saves two
            copies of the parameters on the device, and costs four copies to the device at each point. Models of up to 8
            MB stay on the device.
        autocast: False evaluates losses without autocast, so that the function is measured without the rounding of
            bfloat16. x_t is then evaluated again too (one evaluation more), and the trace holds that loss and gradient.
            Casts in the model's own code stay.
        log: Receives scalars of each well measured step, a few seconds late: an object with
            `add_scalar(name, value, step)`, such as TensorBoard's `SummaryWriter`, or a function with these arguments.
            The scalars are global smoothness, gradient norm, 2 / lr, critical learning rate, and edge ratio.
        log_by: Also log smoothness, gradient norm and edge ratio of groups of parameters: "module", "parameter", or
            another grouping that `Trace.smoothness(by=…)` takes.
        mode: "x" refuses an existing file, "w" replaces it, "a" continues the trace of this run.
        metadata: Anything that JSON can hold; kept in the trace.

    Raises:
        InvalidArgumentError: An argument is out of its range, or the optimizer or the model cannot be measured.
        TraceError: The folder of `path` is missing, or the file there may not be replaced or cannot be continued.

    If the file cannot be written (permissions, a full disk), from the start or from some step on, training goes on
    without measurements, and one `TraceWarning` says so.

    Examples:
        >>> with lsmooth.Recorder(model, optimizer, "run.h5", every=10) as recorder:  # doctest: +SKIP
        ...     for inputs, targets in loader:
        ...         optimizer.zero_grad()
        ...         loss = recorder.backward(lambda: loss_fn(model(inputs), targets))
        ...         optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        path: str | bytes | os.PathLike[str],
        *,
        every: int | Callable[[int], bool] = 1,
        gammas: Sequence[float] = DEFAULT_GAMMAS,
        endpoint: bool = True,
        coordinates: int = 4,
        seed: int = 0,
        probe: Closure | Sequence[Closure] | None = None,
        probe_size: int | None = None,
        norms: Sequence[str | Mapping[str, str]] | Mapping[str, str] = ("l2",),
        densities: bool = False,
        critical: bool = False,
        blocks: Any = None,
        cuda_graphs: bool = False,
        offload: bool = False,
        autocast: bool = True,
        log: Any = None,
        log_by: By | None = None,
        mode: Mode = "x",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = _taken_over(path, mode)
        self._place, self._number = os.path.realpath(self._path), next(_numbers)
        self._subject = subject = Subject.of(model, optimizer)
        self._settings = settings = Settings.checked(
            subject.device, subject.names, every=every, gammas=gammas, endpoint=endpoint, coordinates=coordinates,
            seed=seed, probe=probe, probe_size=probe_size, norms=norms, densities=densities, critical=critical,
            blocks=blocks, cuda_graphs=cuda_graphs, offload=offload, autocast=autocast,
        )  # fmt: skip
        self._ranks = ranks = Ranks(model, subject.names, subject.parameters)
        settings.check_for(subject.device, alone=ranks.alone, sharded=ranks.sharded)
        header = header_of(subject, settings, ranks.size, metadata or {})
        listener = None if log is None else Scalars(log)
        logged = logged_groups(subject.names, log, log_by)
        self._recording = Recording(
            self._path, header, mode, ranks, subject.parameters, settings.facts(), listener, logged
        )
        self._faults = Faults(alone=ranks.alone)
        try:
            self._instrument = Instrument(subject, settings, ranks, header, self._recording, self._faults)
            self._stepping = Stepping(subject, settings, self._instrument, self._recording, ranks, self._faults)
        except BaseException:
            # The file is locked by this process; only closing it here unlocks it.
            self._recording.close(self._recording.next_step, wait=True)
            raise
        self._open = True
        _OPEN_IN_PROCESS.add(self)

    # --- what the training loop calls ---

    def backward(self, closure: Closure, scaler: torch.amp.GradScaler | None = None) -> Any:
        """Run `closure`, then backward from the loss it returns, in place of `loss.backward()`.

        Several calls before one `optimizer.step()` accumulate gradients. The closure is evaluated again at measured
        steps, and what it changes then (variables, attributes, small containers, tensors) is put back. Its other
        effects (drawing from an iterator, writing to a file) happen again; ask `lsmooth.replay.replaying()` to avoid
        them.

        Args:
            closure: Runs the forward pass and returns the loss, or a tuple whose first item is the loss.
            scaler: The gradient scaler, if one is used; backward then starts from `scaler.scale(loss)`.

        Returns:
            What the closure returned, detached from the graph.

        Raises:
            RecorderError: The closure returns no scalar loss, or the step cannot be measured.
        """
        recorders = _attached_to(self._subject.model)
        with _unwatched(recorders):
            attempts = [recorder._stepping.attempts for recorder in recorders]
            return run_backward(closure, scaler, attempts, self._ranks.context())

    def watch(
        self,
        function: Callable[..., Any] | Sequence[nn.Module],
        criterion: Callable[..., Any] | None = None,
        *,
        loss: Choice | None = None,
        scaler: torch.amp.GradScaler | None = None,
        during_replay: Context = contextlib.nullcontext,
    ) -> Callable[..., Any]:
        """Return a function or criterion that behaves like the given one, and whose losses are measured.

        The loop calls the returned function, and then `loss.backward()` as before. How the loop weights the loss (a
        mean over microbatches, a sum) is part of what is measured. A term of the loss that does not come from the
        function is not measured, and is warned about.

        Args:
            function: Returns the loss itself, or the loss as attribute `loss`, item "loss", first item, or only scalar
                with a gradient. Replays call it with the same arguments. With `criterion`: the model, or a list of
                models.
            criterion: Returns the loss of the model's output, or of views, entries or softmaxes of it. A criterion that
                is a module is watched in place.
            loss: Picks the loss out of what is returned.
            scaler: The gradient scaler, if one is used.
            during_replay: Makes a context in which replays call the function, to switch side effects off; see
                `lsmooth.replay.replaying`.

        Examples:
            >>> criterion = recorder.watch(model, criterion)  # doctest: +SKIP
            >>> for inputs, targets in loader:
            ...     optimizer.zero_grad()
            ...     criterion(model(inputs), targets).backward()
            ...     optimizer.step()
        """
        return self._stepping.watch.wrap(function, criterion, scaler, during_replay, loss)

    def watch_forward(
        self, model: nn.Module | None = None, *, loss: Choice | None = None, scaler: torch.amp.GradScaler | None = None
    ) -> Recorder:
        """Measure the loss that the model's own forward returns, without a change to the training loop; return self.

        Args:
            model: The module that the loop calls and whose output holds the loss; the recorder's model by default.
            loss: Picks the loss out of the output; by default as in `watch`.
            scaler: The gradient scaler, if one is used.

        Examples:
            >>> with lsmooth.Recorder(model, optimizer, "run.h5").watch_forward():  # doctest: +SKIP
            ...     for batch in loader:
            ...         optimizer.zero_grad()
            ...         model(**batch).loss.backward()
            ...         optimizer.step()
        """
        self._stepping.watch.hook_forward(self._subject.called if model is None else model, scaler, loss=loss)
        return self

    @property
    def step(self) -> int:
        """Index of the next optimizer step, counted from 0; a joint step of several optimizers counts once."""
        return self._stepping.attempts.number

    @property
    def latest(self) -> Measurement | None:
        """The last well measured step whose numbers have left the device, up to a few seconds ago; None before that."""
        return self._recording.handover.latest

    @property
    def failure(self) -> str | None:
        """Why nothing is recorded (any more), or else the last thing that went wrong; None while all is well.

        With several processes, a failure at the start is known to all of them, and a later one to rank 0.
        """
        return self._recording.failure or self._faults.latest

    def state_dict(self) -> dict[str, Any]:
        """Write all measured steps to the file, and return what a checkpoint needs to continue the trace from here.

        Returns:
            Index of the next optimizer step (`step`), number of steps before it in the trace (`rows`), seconds of the
            run so far (`seconds`), and with `densities=True` the counts of all coordinates so far (`densities`, int64,
            on the CPU).
        """
        self._stepping.joint.finish()
        return {"step": self.step, **self._recording.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint: count from its step, and drop the trace's rows from that step on.

        Call it on a recorder made with `mode="a"`, before the first step. With another mode, the new trace begins at
        the checkpoint's step.

        Raises:
            TraceError: The trace is not that of the checkpoint, or has been written to already.
        """
        self._recording.go_on_from(state)
        self._stepping.attempts.count_from(int(state["step"]))

    def flush(self) -> None:
        """Write all measured steps to the file, and wait for it."""
        self._recording.flush()

    def close(self) -> None:
        """Detach from the loop and finish the trace; the loop can go on without the recorder."""
        self._stepping.joint.finish()
        self._close()

    def __del__(self) -> None:
        # Garbage may be collected at any moment, where waiting could hang the process.
        self._close(wait=False)

    def _close(self, *, wait: bool = True) -> None:
        if not getattr(self, "_open", False):
            return
        self._open = False
        _OPEN_IN_PROCESS.discard(self)
        self._stepping.close()
        self._instrument.close()
        self._recording.close(self.step, wait=wait)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._stepping.joint.finish()
        self._close()

    def __repr__(self) -> str:
        state = f"next step {self.step}" if self._open else "closed"
        return f"Recorder({self._path!r}, {len(self._subject.parameters)} parameter tensors, {state})"

    def _repr_html_(self) -> str:
        model, size = type(self._subject.model).__name__, sum(p.numel() for p in self._subject.parameters)
        facts = [
            ("state", "recording" if self._open else "closed"),
            ("model", f"{model}: {len(self._subject.parameters)} parameter tensors, {size:,} parameters"),
            ("optimizer", self._subject.optimizer_name),
            ("measured", f"every {self._settings.every} steps" if isinstance(self._settings.every, int) else "on call"),
            ("next step", f"{self.step:,}"),
        ]
        if (latest := self.latest) is not None:
            seen = f"step {latest.step:,}: loss {latest.loss:.4g}, smoothness {latest.smoothness:.4g}"
            facts.append(("last well measured", seen))
        return table_html("lsmooth recorder", self._path, [*facts, ("failure", self.failure or "none")])


@contextlib.contextmanager
def _unwatched(recorders: Sequence[Recorder]) -> Iterator[None]:
    """Run a block whose losses the recorders' watches ignore."""
    for recorder in recorders:
        recorder._stepping.watch.deaf = True
    try:
        yield
    finally:
        for recorder in recorders:
            recorder._stepping.watch.deaf = False
