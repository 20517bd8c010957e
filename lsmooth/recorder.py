"""The recorder: what a training loop wears, which steps are measured, and in what order things happen.

At a measured step, the step's gradient is noted where training left it when `Recorder.backward` has computed it, x_t is
copied just before `optimizer.step()` changes it, and just after it the loss is evaluated again along the segment to
x_{t+1}. In loops that change the gradient before they use it, it is copied, and gradients of those evaluations are
consumed as they arrive in the backward pass, so that no further full copy of them is held.

What training did is in `lsmooth.loop`, evaluating it again in `lsmooth.replay`, what becomes of a gradient in
`lsmooth.measure`.
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
from lsmooth.trace.grouping import By
from lsmooth.trace.html import table_html
from lsmooth.trace.writer import Mode

# Recorders at work in this process. None is kept alive, and no model: a notebook's cell may be run again.
_OPEN_IN_PROCESS: weakref.WeakSet[Recorder] = weakref.WeakSet()
_numbers = itertools.count()


@atexit.register
def _close_all() -> None:
    """Close what a script ends without closing."""
    for recorder in list(_OPEN_IN_PROCESS):
        recorder._close()


def _attached_to(model: nn.Module) -> list[Recorder]:
    """Return the recorders on a model, oldest first: one call of `backward` serves them all."""
    recorders = [recorder for recorder in list(_OPEN_IN_PROCESS) if recorder._subject.model is model]
    return sorted(recorders, key=lambda recorder: recorder._number)


def _taken_over(path: str | os.PathLike[str], mode: Mode) -> str:
    """Return a path that no recorder of this process writes to any more, if what is there is to be replaced."""
    path = os.fspath(path)
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
        optimizer: The optimizer whose steps are measured, and all of its parameters; or several, such as
            `[muon, adamw]`, that take each step together on one loss: d is their joint displacement. A step is over
            when all of them have stepped, in any order; one that sits it out is not waited for once the next backward
            pass begins, or one that has stepped is about to step again.
        path: Where the trace goes.
        every: Measure every so many optimizer steps (an int), or those for which `every(step)` is true.
        gammas: Positions along the step, in (0, 1].
        endpoint: Also evaluate x_{t+1}: its loss, and the gradient's followed coordinates (Figure 3's definition).
        coordinates: How many coordinates of each parameter tensor are followed; 0 for none.
        seed: For the choice of coordinates and, with `probe`, for the probes' randomness.
        probe: A closure, or several, each returning a loss on a fixed batch. The function measured is then their mean,
            an estimate of the full loss F, in place of the step's own loss; `backward` is optional.
        probe_size: How many examples a probe has, over all ranks; kept with the trace, for the noise scale.
        norms: Geometries to measure smoothness in: "l2", which always is; "linf" (the displacement's largest entry, the
            gradients' 1-norm), which fits sign methods and Adam; "spectral" (spectral and nuclear norm of each
            matrix), which fits Muon and Scion, takes singular values at each point, and waits for the GPU there. A
            mapping from patterns of names to these, such as {"attn|mlp": "spectral", "*": "linf"}, is the geometry
            "layers": each tensor has its own norm, and all together the largest of them.
        densities: Also count all coordinates of each tensor by gradient and coordinate-wise estimate (Figure 3 for
            all). A measured step then holds two more numbers a coordinate; the trace grows by 144 KiB a tensor.
        critical: Also search by forward passes for the first gamma, also beyond 1, at which the loss is above its
            start: lr times it is the critical learning rate. Each pass, of some two to ten, waits for the GPU.
        blocks: Also move groups of layers by themselves, one evaluation each: how many groups, or what groups
            parameters as `by=` does; or a pair of that and of how many steps lie between, such as ("module", 100).
        cuda_graphs: On a GPU, capture a measured step's evaluation at the first point as a CUDA graph and play it back
            at the others: the same numbers, several times sooner where launching kernels takes longer than running
            them (small models, small batches). No closure may wait for the GPU then, and the graph takes as much
            memory as another evaluation.
        offload: On a GPU, x_t and x_{t+1} wait in pinned memory of the host: two copies of the parameters less on the
            device, the same numbers, and four copies to it at each point. Models of up to 8 MB stay there.
        autocast: False evaluates losses without autocast, at x_t too (one evaluation more), whose loss and gradient the
            trace then has: it measures the function, and not bf16's rounding. Casts of the model's own stay.
        log: Hears of each well measured step as the trace does, a few seconds late: an object with
            `add_scalar(name, value, step)`, such as TensorBoard's `SummaryWriter`, or a function of the same. It gets
            the global smoothness, the gradient norm, 2 / lr, the critical learning rate, and the edge ratio.
        log_by: Also log smoothness, gradient norm and edge ratio of groups of parameters: "module", "parameter", or
            another grouping that `Trace.smoothness(by=…)` takes.
        mode: "x" refuses an existing file, "w" replaces it, "a" continues the trace of this run.
        metadata: Anything that JSON can hold, kept with the trace.

    Raises:
        InvalidArgumentError: An argument is out of its range, or the optimizer or the model cannot be measured.
        TraceError: There is no folder for `path`, or what is there is not to be replaced, or not to be continued.

    Where the system lets nothing be written (permissions, a full disk), from the start or from some step on, training
    goes on without measurements, and one `TraceWarning` says so.

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
        path: str | os.PathLike[str],
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
        self._place, self._number = os.path.realpath(path), next(_numbers)
        self._subject = subject = Subject.of(model, optimizer)
        self._settings = settings = Settings.checked(
            subject.device,
            subject.names,
            every=every,
            gammas=gammas,
            endpoint=endpoint,
            coordinates=coordinates,
            seed=seed,
            probe=probe,
            probe_size=probe_size,
            norms=norms,
            densities=densities,
            critical=critical,
            blocks=blocks,
            cuda_graphs=cuda_graphs,
            offload=offload,
            autocast=autocast,
        )
        self._ranks = ranks = Ranks(model, subject.names, subject.parameters)
        settings.check_for(subject.device, alone=ranks.alone, sharded=ranks.sharded)
        header = header_of(subject, settings, ranks.size, metadata or {})
        listener = None if log is None else Scalars(log)
        logged = logged_groups(subject.names, log, log_by)
        self._recording = Recording(path, header, mode, ranks, subject.parameters, settings.facts(), listener, logged)
        self._faults = Faults(alone=ranks.alone)
        try:
            self._instrument = Instrument(subject, settings, ranks, header, self._recording, self._faults)
            self._stepping = Stepping(subject, settings, self._instrument, self._recording, ranks, self._faults)
        except BaseException:
            # Nobody else could close the file, which this process has locked.
            self._recording.close(self._recording.next_step, wait=True)
            raise
        self._open = True
        _OPEN_IN_PROCESS.add(self)

    # --- what the training loop calls ---

    def backward(self, closure: Closure, scaler: torch.amp.GradScaler | None = None) -> Any:
        """Run `closure`, then backward from the loss it returns, in place of `loss.backward()`.

        Several calls before one `optimizer.step()` accumulate gradients. The closure is evaluated again at measured
        steps, and what it changes then (variables, attributes, small containers, tensors) is put back; what else it
        does (drawing from an iterator, writing to a file) happens again, unless `lsmooth.replay.replaying()` stops it.

        Args:
            closure: Runs the forward pass and returns the loss, or a tuple whose first item is the loss.
            scaler: The gradient scaler, where one is used; backward then starts from `scaler.scale(loss)`.

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
        """Return a function, or a criterion, that does what it did, and whose losses are measured.

        The loop calls that, and `loss.backward()` as ever. What it makes of the loss on the way (a mean over
        microbatches, a sum) is measured; a term that does not come from the function is not, and is warned about.

        Args:
            function: Returns the loss, or something with it as `.loss`, item "loss", first item, or only scalar with a
                gradient. Called again with the same arguments. With `criterion`: the model, or several.
            criterion: Returns the loss of the model's output, or of views, entries or softmaxes of it. A module is
                watched where it is.
            loss: Picks the loss out of what is returned.
            scaler: The gradient scaler, where one is used.
            during_replay: Makes a context for calling again, without what else is done; see `lsmooth.replay.replaying`.

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
        """Measure the loss that the model's own forward returns, the training loop being left as it is; return self.

        Args:
            model: The module that the loop calls and whose output carries the loss, the recorder's by default.
            loss: Picks the loss out of the output; by default as in `watch`.
            scaler: The gradient scaler, where one is used.

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
        """Index of the optimizer step that comes next, counted from 0; several optimizers take one step together."""
        return self._stepping.attempts.number

    @property
    def latest(self) -> Measurement | None:
        """The last well measured step that has left the device, up to a few seconds old; None before the first."""
        return self._recording.handover.latest

    @property
    def failure(self) -> str | None:
        """Why nothing is recorded, or nothing any more, or what went wrong last; None while all is well.

        Of several processes, all know it where nothing could be written from the start, and rank 0 what failed later.
        """
        return self._recording.failure or self._faults.latest

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue the trace from here, all measured so far being in the file.

        Returns:
            The optimizer step that comes next (`step`), how many steps before it are in the trace (`rows`), the run's
            seconds so far (`seconds`), and with `densities=True` the counts of all coordinates so far (`densities`,
            int64, on the CPU).
        """
        self._stepping.joint.finish()
        return {"step": self.step, **self._recording.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: count from its step, and drop what the trace holds from there on.

        Call it on a recorder made with `mode="a"`, before the first step. With another mode, it counts on in a new
        trace.

        Raises:
            TraceError: The trace is not the checkpoint's, or has been written to already.
        """
        self._recording.go_on_from(state)
        self._stepping.attempts.count_from(int(state["step"]))

    def flush(self) -> None:
        """Write all that was measured so far to the file, and wait for it."""
        self._recording.flush()

    def close(self) -> None:
        """Detach from the loop and finish the trace; the loop can go on without the recorder."""
        self._stepping.joint.finish()
        self._close()

    def __del__(self) -> None:
        # Garbage is collected in the middle of anything, so that nothing is waited for.
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
    """Run a block whose losses are no business of the recorders' watches."""
    for recorder in recorders:
        recorder._stepping.watch.deaf = True
    try:
        yield
    finally:
        for recorder in recorders:
            recorder._stepping.watch.deaf = False
