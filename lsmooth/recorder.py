"""The recorder: what a training loop wears, which steps are measured, and in what order things happen.

At a measured step, the step's gradient is noted where training left it when `Recorder.backward` has computed it, x_t is
copied just before `optimizer.step()` changes it, and just after it the loss is evaluated again along the segment to
x_{t+1}. In loops that change the gradient before they use it, it is copied, and gradients of those evaluations are
consumed as they arrive in the backward pass, so that no further full copy of them is held.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lsmooth import __version__
from lsmooth.allocator import keep_freed_memory
from lsmooth.arguments import (
    checked_coordinates,
    checked_every,
    checked_gammas,
    checked_norms,
    checked_probes,
    measured_parameters,
    optimizer_inside,
    plain,
)
from lsmooth.arrivals import Arrivals, counted_arrivals
from lsmooth.closures import Closure, frozen, reached
from lsmooth.coordinates import CoordinateReader, choose_coordinates
from lsmooth.densities import DensityCounter
from lsmooth.distributed import Ranks, SilentWriter, local, unwrapped
from lsmooth.errors import InvalidArgumentError, RecorderError
from lsmooth.graphs import Played, Player, owned_by_graphs
from lsmooth.handover import Handover, Measurement, RowLayout
from lsmooth.integrations.scalars import Scalars
from lsmooth.interrupts import DeferredInterrupt
from lsmooth.norms import Kind, TensorNorms, tensor_norms
from lsmooth.replay import (
    AutocastState,
    Microbatch,
    ModuleState,
    RandomState,
    detached,
    loss_of,
    reachable_leaves,
)
from lsmooth.segment import Segment
from lsmooth.trace.background import BackgroundWriter
from lsmooth.trace.header import Header
from lsmooth.trace.layout import Status
from lsmooth.trace.writer import Mode, TraceWriter
from lsmooth.watching import Function, Watch

DEFAULT_GAMMAS = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)

# Who measures which model: one call of `backward` serves every recorder on the model.
_ATTACHED: weakref.WeakKeyDictionary[nn.Module, list[Recorder]] = weakref.WeakKeyDictionary()

# Gradients that have arrived are consumed together once they are this large: fewer, larger operations, bounded memory.
_BUCKET_SHARE = 1 / 16
_BUCKET_LEAST_BYTES = 1 << 16
# Below this, a copy of all gradients costs less than taking them one by one.
_TAKEN_WHOLE_BYTES = 1 << 20


@dataclass
class _Step:
    """What is known of the step in progress.

    `lent` holds by position what of `gradient` is training's own `.grad` and no copy, with an imprint of it, and
    `lent_norms` the 2-norms of all that at the time.
    """

    microbatches: list[Microbatch] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    gradient: list[Tensor | None] = field(default_factory=list)
    lent: dict[int, tuple[Tensor, tuple[int, int]]] = field(default_factory=dict)
    lent_norms: Tensor | None = None
    arrivals: dict[Tensor, int] = field(default_factory=dict)
    leaves: list[tuple[Tensor, int]] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    companions: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)
    foreign: Tensor | None = None
    noise: Tensor | None = None
    flags: int = 0
    segment: Segment | None = None
    active: list[int] = field(default_factory=list)
    played: list[Played] | None = None
    lr: list[float | Tensor] = field(default_factory=list)


class Recorder:
    """Measures local Lipschitz constants of the gradient while a model is being trained, and only watches.

    At a measured step from x_t to x_{t+1} = x_t + d, the gradient of the step's own loss (same batch, same randomness,
    same buffers) is evaluated at x_t + gamma d for each gamma, and ‖grad f(x_t + gamma d) - grad f(x_t)‖ and ‖d‖ of
    every parameter tensor are kept, from which all estimates are derived on reading (Crawshaw et al. 2022, Section
    5.2; Zhang et al. 2020, Section H.3). Parameters, optimizer state, buffers, gradients, random number generators and
    training flags are afterwards, bit for bit, what they would have been without the recorder.

    Args:
        model: The model being trained, compiled or not.
        optimizer: The optimizer whose steps are measured; all of its parameters are.
        path: Where the trace goes.
        every: Measure every so many optimizer steps (an int), or those for which `every(step)` is true.
        gammas: Positions along the step, in (0, 1].
        endpoint: Also evaluate x_{t+1}: its loss, and the gradient's followed coordinates (Figure 3's definition).
        coordinates: How many coordinates of each parameter tensor are followed; 0 for none.
        seed: For the choice of coordinates and, with `probe`, for the probes' randomness.
        probe: A closure, or several, each returning a loss on a fixed batch. The function measured is then their mean,
            an estimate of the full loss F, in place of the step's own loss; `backward` is optional.
        norms: Geometries to measure smoothness in: "l2", which always is; "linf" (the displacement's largest entry, the
            gradients' 1-norm), which fits sign methods and Adam; "spectral" (spectral and nuclear norm of each
            matrix), which fits Muon and Scion, takes singular values at each point, and waits for the GPU there.
        densities: Also count all coordinates of each parameter tensor by gradient and coordinate-wise estimate (Figure
            3 for every coordinate). A measured step then holds two more numbers a coordinate, and the trace grows by a
            fixed 144 KiB a tensor.
        cuda_graphs: On a GPU, capture a measured step's evaluation at the first point as a CUDA graph and play it back
            at the others: the same numbers, several times sooner where launching kernels takes longer than running
            them (small models, small batches). No closure may wait for the GPU then, and the graph takes as much
            memory as another evaluation.
        log: Hears of each well measured step as the trace does, a few seconds late: an object with
            `add_scalar(name, value, step)`, such as TensorBoard's `SummaryWriter`, or a function of the same. It gets
            the global smoothness, the gradient norm, and 2 / lr.
        mode: "x" refuses an existing file, "w" replaces it, "a" continues the trace of this run.
        metadata: Anything that JSON can hold, kept with the trace.

    Raises:
        InvalidArgumentError: An argument is out of its range, or the optimizer or the model cannot be measured.
        TraceError: There is no folder for `path`, or what is there is not to be replaced, or not to be continued.

    Where the system lets nothing be written (permissions, a full disk), from the start or from some step on, training
    goes on without measurements, and one `TraceWarning` says so.

    Example:
        >>> with lsmooth.Recorder(model, optimizer, "run.h5", every=10) as recorder:  # doctest: +SKIP
        ...     for inputs, targets in loader:
        ...         optimizer.zero_grad()
        ...         loss = recorder.backward(lambda: loss_fn(model(inputs), targets))
        ...         optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        path: str | os.PathLike[str],
        *,
        every: int | Callable[[int], bool] = 1,
        gammas: Sequence[float] = DEFAULT_GAMMAS,
        endpoint: bool = True,
        coordinates: int = 4,
        seed: int = 0,
        probe: Closure | Sequence[Closure] | None = None,
        norms: Sequence[str] = ("l2",),
        densities: bool = False,
        cuda_graphs: bool = False,
        log: Any = None,
        mode: Mode = "x",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._called = model
        self._model = unwrapped(model)
        self._optimizer = optimizer = optimizer_inside(optimizer)
        self._every = checked_every(every)
        self._gammas = checked_gammas(gammas)
        self._endpoint = bool(endpoint)
        self._seed = seed
        self._probes = checked_probes(probe)
        self._names, self._parameters = measured_parameters(self._model, optimizer)
        self._groups = len(optimizer.param_groups)
        self._device = self._parameters[0].device
        self._ranks = Ranks(model, self._names, self._parameters)
        mine = set(self._parameters)
        self._companions = [p for p in self._model.parameters() if p.requires_grad and p not in mine]
        total = sum(p.numel() * p.element_size() for p in self._parameters)
        self._bucket_bytes = max(_BUCKET_LEAST_BYTES, int(_BUCKET_SHARE * total))
        self._takes_early = total > _TAKEN_WHOLE_BYTES

        chosen = choose_coordinates(
            self._names, [p.shape for p in self._parameters], checked_coordinates(coordinates), seed
        )
        self._coordinates = CoordinateReader(chosen, self._parameters, self._device, self._ranks.held)
        self._geometries = checked_norms(norms, self._device)
        sizes = [local(p).numel() for p in self._parameters]
        # Gradients and their changes are measured in the dual of the norm that displacements are measured in. These are
        # used one after another, so that those of the same norms may be one.
        kinds: tuple[tuple[Kind, ...], ...] = (
            ("l2",),
            tuple(geometry.displacement for geometry in self._geometries),
            tuple(geometry.gradient for geometry in self._geometries),
        )
        norms_of = {some: TensorNorms(sizes, self._device, some) for some in dict.fromkeys(kinds)}
        self._norms, self._step_norms, self._dual_norms = (norms_of[some] for some in kinds)
        limits = [torch.finfo(p.dtype) for p in self._parameters]
        least = [math.sqrt(size) * limit.smallest_normal for size, limit in zip(sizes, limits, strict=True)]
        self._resolution = torch.tensor(
            [[limit.eps / 2 for limit in limits], least], dtype=self._norms.dtype, device=self._device
        )
        header = Header(
            parameters=tuple(self._names),
            parameter_sizes=tuple(p.numel() for p in self._parameters),
            gammas=self._gammas,
            groups=self._groups,
            real="float64" if any(p.dtype == torch.float64 for p in self._parameters) else "float32",
            endpoint=self._endpoint,
            noise=len(self._probes) > 1,
            coordinate_names=chosen.names,
            coordinate_owners=chosen.owners,
            coordinate_indices=chosen.indices,
            attributes=self._description(metadata or {}),
            norms=tuple(geometry.name for geometry in self._geometries if geometry.name != "l2"),
            densities=bool(densities),
        )
        self._layout = RowLayout(header.fields(), header.sizes())
        self._ranks.prepare(self._layout, self._device)
        if densities and self._ranks.sharded:
            raise InvalidArgumentError(
                "densities=True counts the coordinates that one process holds; train with DistributedDataParallel, or "
                "follow single coordinates with coordinates=."
            )
        if cuda_graphs and not (self._device.type == "cuda" and self._ranks.alone):
            raise InvalidArgumentError(
                "cuda_graphs=True needs a model on an NVIDIA GPU that one process trains; leave it out here."
            )
        scalars = None if log is None else Scalars(log)
        self._path = os.fspath(path)
        self._file: TraceWriter | None = self._ranks.agree(
            lambda: TraceWriter(path, header, mode),
            parameters=list(zip(header.parameters, header.parameter_sizes, strict=True)),
            datasets=[item.name for item in header.fields()],
            gammas=self._gammas,
            probes=len(self._probes),
            every=self._every if isinstance(self._every, int) else "callable",
        )
        next_step, refusal = self._ranks.from_rank_0(
            (self._file.next_step, self._file.refusal) if self._file is not None else None
        )
        self._refused = refusal is not None
        self._writer = BackgroundWriter(self._file) if self._file is not None else SilentWriter(refusal)
        self._densities = DensityCounter(self._parameters, self._device) if densities else None
        if self._densities is not None and self._file is not None and self._file.density is not None:
            self._densities.load(self._densities.packed(self._file.density))
        self._handover = Handover(
            self._layout, self._gammas, self._device, self._writer, header.real, self._densities, scalars
        )

        self._handover.tell()

        # Step number, and whether it is measured: asked once, since `every` may be anything.
        self._step = next_step or 0
        self._decision: tuple[int, bool] | None = None
        self._current: _Step | None = None
        self._mark: tuple[Tensor, int, int] | None = None
        self._replay_checked = False
        self._player = Player(self._parameters, self._device) if cuda_graphs else None
        # The gradient of a step is read where training left it, in `.grad`, until a loop is seen to change it before
        # or in its optimizer's step; from then on, it is copied.
        self._borrows = self._ranks.plain_gradients()
        # Whether CUDA graphs overwrite gradients at each replay; None until the first has been seen.
        self._in_graphs: bool | None = None
        self._segment: Segment | None = None
        # `time` goes on where a continued trace left off.
        self._started = time.monotonic() - (self._file.seconds if self._file is not None else 0.0)
        self._open = True
        self._watch = Watch(self)
        _ATTACHED.setdefault(self._model, []).append(self)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        if self._device.type == "cpu":
            keep_freed_memory(total)
        # A script may end without closing its recorder.
        atexit.register(self.close)

    # --- what the training loop calls ---

    def backward(self, closure: Closure, scaler: torch.amp.GradScaler | None = None) -> Any:
        """Run `closure`, then backward from the loss it returns, in place of `loss.backward()`.

        Several calls before one `optimizer.step()` accumulate gradients. The closure is evaluated again at measured
        steps, so what it does besides computing the loss (appending to lists, drawing a batch) happens again too.

        Args:
            closure: Runs the forward pass and returns the loss, or a tuple whose first item is the loss.
            scaler: The gradient scaler, where one is used; backward then starts from `scaler.scale(loss)`.

        Returns:
            What the closure returned, detached from the graph.

        Raises:
            RecorderError: The closure returns no scalar loss, or the step cannot be measured.
        """
        recorders = _ATTACHED.get(self._model, [])
        watching = [recorder for recorder in recorders if recorder._wants_backward()]
        with _unwatched(recorders):
            if watching:
                returned = self._watched_backward(closure, scaler, watching)
            else:
                returned = closure()
                loss = loss_of(returned)
                (loss if scaler is None else scaler.scale(loss)).backward()
        for recorder in recorders:
            recorder._leave_mark()
        # What a graph has returned must outlast the replays, too.
        return detached(returned, copy=any(recorder._in_graphs for recorder in watching))

    def watch(
        self,
        function: Function,
        *,
        scaler: torch.amp.GradScaler | None = None,
        during_replay: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> Function:
        """Return a function that does what `function` does, and whose losses are measured: for loops left as they are.

        The loop calls the returned function in place of `function`, and `loss.backward()` as ever. What the loop makes
        of the loss on the way (dividing it by a number of microbatches, adding several) is part of what is measured;
        what it adds that does not come from the function is not, and is warned about.

        Args:
            function: Computes the loss from its arguments; returns it, or something with it as `.loss`, as item "loss"
                or as first item. Called again at measured steps, with the same arguments.
            scaler: The gradient scaler, where one is used.
            during_replay: Makes a context in which `function` is called again, to keep what else it does from being
                done again; see also `lsmooth.replay.replaying`.

        Example:
            >>> compute_loss = recorder.watch(compute_loss)  # doctest: +SKIP
            >>> for batch in loader:
            ...     optimizer.zero_grad()
            ...     compute_loss(batch).backward()
            ...     optimizer.step()
        """
        return self._watch.wrap(function, scaler, during_replay)

    def watch_forward(self, model: nn.Module | None = None, *, scaler: torch.amp.GradScaler | None = None) -> Recorder:
        """Measure the loss that the model's own forward returns, so that the training loop needs no change at all.

        Args:
            model: The module that the loop calls and whose output carries the loss (as `.loss`, as item "loss", as
                first item, or alone), the recorder's model by default.
            scaler: The gradient scaler, where one is used.

        Returns:
            The recorder itself.

        Example:
            >>> with lsmooth.Recorder(model, optimizer, "run.h5").watch_forward():  # doctest: +SKIP
            ...     for batch in loader:
            ...         optimizer.zero_grad()
            ...         model(**batch).loss.backward()
            ...         optimizer.step()
        """
        self._watch.hook_forward(self._called if model is None else model, scaler)
        return self

    @property
    def step(self) -> int:
        """Index of the optimizer step that comes next, counted from 0."""
        return self._step

    @property
    def latest(self) -> Measurement | None:
        """The last well measured step that has left the device, up to a few seconds old; None before the first."""
        return self._handover.latest

    @property
    def failure(self) -> str | None:
        """Why nothing is recorded, or nothing any more, in one sentence; None while all is well.

        Of several processes, all know it where nothing could be written from the start, and rank 0 what failed later.
        """
        return self._writer.failure

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue the trace from here, all measured so far being in the file.

        Returns:
            The optimizer step that comes next (`step`), how many steps before it are in the trace (`rows`), the run's
            seconds so far (`seconds`), and with `densities=True` the counts of all coordinates so far (`densities`,
            int64, on the CPU).
        """
        # A checkpoint newer than the file would leave a gap after a kill.
        self.flush()
        state: dict[str, Any] = {
            "step": self._step,
            "rows": self._file.rows if self._file is not None else 0,
            "seconds": time.monotonic() - self._started,
        }
        if self._densities is not None:
            state["densities"] = self._densities.snapshot().cpu()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: count from its step, and drop what the trace holds from there on.

        Call it on a recorder made with `mode="a"`, before the first step. With another mode, it counts on in a new
        trace.

        Raises:
            TraceError: The trace is not the checkpoint's, or has been written to already.
        """
        rows = state.get("rows")
        if self._file is not None:
            before = self._file.rows
            self._file.go_on_from(int(state["step"]), None if rows is None else int(rows))
            if self._densities is not None and self._file.next_step is not None:
                self._restore_densities(self._file, state.get("densities"), dropped=self._file.rows < before)
        # A checkpoint that does not know the time goes on from the last row that is kept.
        seconds = state.get("seconds", self._file.seconds if self._file is not None else 0.0)
        self._started = time.monotonic() - float(seconds)
        self._step = int(state["step"])
        self._decision = None

    def _restore_densities(self, file: TraceWriter, counts: Tensor | None, dropped: bool) -> None:
        """Put the counts back to what they were at a checkpoint: steps that are dropped cannot be taken out of them."""
        assert self._densities is not None
        if counts is None and not dropped:
            return
        if counts is None and file.rows:
            warnings.warn(
                f"The checkpoint holds no densities, and the counts in {file.path} include steps that are now "
                "dropped: densities begin anew here; save recorder.state_dict() whole to keep them.",
                stacklevel=3,
            )
        if counts is None:
            counts = torch.zeros_like(self._densities.snapshot())
        self._densities.load(counts)
        file.density = self._densities.unpacked(self._densities.snapshot().cpu().numpy())

    def flush(self) -> None:
        """Write all that was measured so far to the file, and wait for it."""
        self._handover.flush()
        self._writer.wait()
        self._handover.tell()

    def close(self) -> None:
        """Detach from the loop and finish the trace; the loop can go on without the recorder."""
        if not self._open:
            return
        self._open = False
        self._watch.close()
        atexit.unregister(self.close)
        for hook in self._hooks:
            hook.remove()
        recorders = _ATTACHED.get(self._model, [])
        if self in recorders:
            recorders.remove(self)
        self._current = self._segment = self._player = None
        self._handover.flush()
        self._writer.close(self._step)
        self._handover.tell()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"next step {self._step}" if self._open else "closed"
        return f"Recorder({self._path!r}, {len(self._parameters)} parameter tensors, {state})"

    # --- the step's own forward and backward ---

    def _measures(self) -> bool:
        """Say whether the step that comes next is measured."""
        if self._decision is None or self._decision[0] != self._step:
            every = self._every
            if self._in_vain():
                measured = False
            else:
                measured = self._step % every == 0 if isinstance(every, int) else bool(every(self._step))
            self._decision = (self._step, measured)
        return self._decision[1]

    def _in_vain(self) -> bool:
        """Say whether nothing of a measurement would be kept."""
        # All ranks measure the same steps, and what fails during the run, rank 0 alone hears of.
        return self._refused or (self._ranks.alone and self._writer.failure is not None)

    def _wants_backward(self) -> bool:
        if self._mark is not None and not self._still_accumulating():
            self._skip_step()
        return not self._probes and self._measures()

    def _pass_over(self) -> None:
        """Let the step that comes next go unmeasured, unless something of it has been collected."""
        if self._current is None or not self._current.microbatches:
            self._current = None
            self._decision = (self._step, False)

    def _leave_mark(self) -> None:
        """Remember one gradient as this backward left it, by which to tell accumulation from a new attempt."""
        if self._mark is not None and self._mark[0].grad is not None:
            self._mark = (self._mark[0], *_imprint(self._mark[0].grad))
            return
        for parameter in self._parameters:
            if parameter.grad is not None:
                self._mark = (parameter, *_imprint(parameter.grad))
                return

    def _still_accumulating(self) -> bool:
        assert self._mark is not None
        parameter, pointer, version = self._mark
        gradient = parameter.grad
        return gradient is not None and _imprint(gradient) == (pointer, version)

    def _skip_step(self) -> None:
        """Take note that the last attempt ended without an optimizer step (a scaler's skip, a `continue`)."""
        current, self._current, self._mark = self._current, None, None
        if current is not None and current.losses:
            row = self._handover.new_row()
            view = self._layout.view
            view(row, "loss").copy_(torch.stack(current.losses).sum())
            self._put_lr(row, [group["lr"] for group in self._optimizer.param_groups])
            self._ranks.join(row)
            self._handover.judge(row, current.flags | int(Status.NO_DISPLACEMENT))
            self._handover.add(row, self._step, time.monotonic() - self._started)
        self._step += 1

    def _watched_backward(self, closure: Closure, scaler: torch.amp.GradScaler | None, watching: list[Recorder]) -> Any:
        device_type = self._device.type
        models, generators = reached(closure, self._model)
        random_state = RandomState.capture(*generators)
        modules = ModuleState.capture(*models)
        autocast = AutocastState.capture(device_type)
        context = self._ranks.context()
        fresh = frozen(closure)
        for recorder in watching:
            recorder._begin_attempt()
        parameters = list(dict.fromkeys(p for recorder in watching for p in recorder._parameters))

        returned = closure()
        loss = loss_of(returned)
        leaves = reachable_leaves(loss)
        scale = None
        if scaler is not None and scaler.is_enabled():
            scale = scaler.scale(torch.ones((), device=loss.device))
        versions = [p._version for p in parameters]
        with counted_arrivals(parameters) as arrivals:
            (loss if scaler is None else scaler.scale(loss)).backward()
        self._check_unchanged(parameters, versions, watching)
        microbatch = Microbatch(fresh, random_state, modules.without_unchanged(), autocast, scale, context=context)
        for recorder in watching:
            recorder._collect([microbatch], [loss.detach()], arrivals, leaves)
        return returned

    def _check_unchanged(
        self, parameters: Sequence[Tensor], versions: Sequence[int], recorders: list[Recorder]
    ) -> None:
        """Refuse a backward pass that changed parameters."""
        for parameter, version in zip(parameters, versions, strict=True):
            if parameter._version != version:
                for recorder in recorders:
                    recorder._current = None
                raise RecorderError(
                    f"{self._name_of(parameter, recorders)} changed inside backward: an optimizer that steps in "
                    "gradient hooks has no single step to measure; step once, after backward."
                )

    def _name_of(self, parameter: Tensor, recorders: list[Recorder]) -> str:
        for recorder in recorders:
            for name, candidate in zip(recorder._names, recorder._parameters, strict=True):
                if candidate is parameter:
                    return name
        return "A parameter"

    def _begin_attempt(self) -> None:
        """Prepare for the first backward of a measured step."""
        if self._current is not None:
            return
        self._check_groups()
        current = self._current = _Step(gradient=[None] * len(self._parameters))
        current.versions = [p._version for p in self._parameters]
        current.companions = [(p, p.detach().clone(), p._version) for p in self._companions]
        before = [local(p.grad) for p in self._parameters if p.grad is not None]
        if before:
            # Zeros, if zero_grad kept the tensors; anything else is a gradient of some other function.
            current.foreign = tensor_norms(before, [None] * len(before), self._device).sum()

    def _collect(
        self,
        microbatches: Sequence[Microbatch],
        losses: Sequence[Tensor],
        arrivals: Mapping[Tensor, int],
        leaves: list[Tensor],
    ) -> None:
        """Keep what a backward left, the gradient as it is now, or where it is: something may clip it yet."""
        current = self._current
        assert current is not None
        current.microbatches += microbatches
        current.losses += [self._to_row_device(loss) for loss in losses]
        current.leaves += [(leaf, leaf._version) for leaf in leaves]
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        if self._in_graphs is None:
            self._in_graphs = owned_by_graphs(local(p.grad) for p in self._parameters if p.grad is not None)
        borrows = self._borrows and not self._in_graphs and not self._handover.gradient_edited
        # A gradient that carries a scaler's factor is unscaled in place before it is used.
        borrows = borrows and _common_scale(microbatches) is None
        lent: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        for position, parameter in enumerate(self._parameters):
            current.arrivals[parameter] = current.arrivals.get(parameter, 0) + arrivals.get(parameter, 0)
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                self._current = None
                raise RecorderError(
                    f"{self._names[position]} has a sparse gradient, whose norms are not measured; "
                    "use sparse=False in its embedding."
                )
            if borrows:
                lent[position] = (gradient, _imprint(gradient))
                current.gradient[position] = gradient.detach()
                continue
            gradient = local(gradient).detach()
            kept = current.gradient[position]
            if kept is None or position in current.lent:
                kept = current.gradient[position] = torch.empty_like(gradient)
            targets.append(kept)
            sources.append(gradient)
        if targets:
            torch._foreach_copy_(targets, sources)
        current.lent = lent
        current.lent_norms = self._gradient_norms(current, self._norms)["l2"] if lent else None

    def _gradient_norms(self, current: _Step, norms: TensorNorms) -> dict[Kind, Tensor]:
        """Return by kind the norms of the step's gradient as it is now."""
        arrived = [(i, gradient) for i, gradient in enumerate(current.gradient) if gradient is not None]
        norms.add([i for i, _ in arrived], [gradient for _, gradient in arrived], [None] * len(arrived))
        return norms.result()

    # --- around optimizer.step() ---

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if _closure_given(args, kwargs):
            if self._watch.on:
                return self._with_closure_followed(optimizer, args, kwargs)
            raise RecorderError(
                f"{type(optimizer).__name__}.step was called with a closure; a recorder measures optimizers that take "
                "their gradients from one backward pass: call recorder.backward(closure), then optimizer.step()."
            )
        self._begin_segment(optimizer)
        return None

    def _with_closure_followed(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments of `optimizer.step` with a closure that notes x_t when it has computed the gradient."""
        calls = 0

        def followed(closure: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                nonlocal calls
                calls += 1
                if calls > 1:
                    self._current = None
                    raise RecorderError(
                        f"{type(optimizer).__name__}.step called its closure twice, which leaves no single step to "
                        "measure; use an optimizer that evaluates the loss once a step."
                    )
                returned = closure()
                self._begin_segment(optimizer)
                return returned

            return run

        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": followed(kwargs["closure"])}
        return tuple(
            followed(value) if i and callable(value) and not isinstance(value, Tensor) else value
            for i, value in enumerate(args)
        ), kwargs

    def _begin_segment(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy x_t, now that the step's gradient is there and the step is about to be taken."""
        if not self._measures():
            self._current = None
            return
        if self._probes:
            self._check_groups()
            self._measure_probes_at_start()
        current = self._current
        if current is None or not current.microbatches:
            if self._watch.on:
                raise RecorderError(
                    f"optimizer.step() was called at measured step {self._step}, but no backward pass came from a loss "
                    "that the watched function or forward had returned; where the loop computes its loss elsewhere, "
                    "use loss = recorder.backward(lambda: loss_fn(model(inputs), targets)) in place of loss.backward()."
                )
            raise RecorderError(
                f"optimizer.step() was called at measured step {self._step} without recorder.backward; replace "
                "loss.backward() by loss = recorder.backward(lambda: loss_fn(model(inputs), targets))."
            )
        restored = {*self._parameters, *self._companions}
        others_moved = any(leaf._version != version for leaf, version in current.leaves if leaf not in restored)
        if others_moved or [p._version for p in self._parameters] != current.versions:
            current.flags |= Status.MOVED
        current.lr = [
            lr.detach().clone() if isinstance(lr, Tensor) else float(lr)
            for lr in (group["lr"] for group in optimizer.param_groups)
        ]
        current.active = [i for i, p in enumerate(self._parameters) if p.requires_grad or p.grad is not None]
        moving = [local(self._parameters[i]).detach() for i in current.active]
        if self._segment is None or not self._segment.fits(moving):
            self._segment = None
            self._segment = Segment(moving)
        self._segment.begin(moving)
        current.segment = self._segment

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        current, self._current, self._mark = self._current, None, None
        step = self._step
        self._step += 1
        if current is None or current.segment is None:
            self._handover.flush_if_old()
            return
        seconds = time.monotonic() - self._started
        try:
            row = self._measure(current)
        except BaseException:
            for norms in (self._norms, self._step_norms, self._dual_norms):
                norms.clear()
            if self._densities is not None:
                self._densities.clear()
            raise
        well = self._handover.judge(row, current.flags)
        if self._densities is not None:
            self._densities.end(well, _common_scale(current.microbatches))
        self._handover.add(row, step, seconds)

    # --- the measurement ---

    def _measure(self, current: _Step) -> Tensor:
        """Evaluate the gradient along the segment and return the filled row; everything is put back."""
        segment = current.segment
        assert segment is not None
        segment.end()
        row = self._handover.new_row()
        view = self._layout.view
        self._put_lr(row, current.lr)
        of_gradient = self._gradient_norms(current, self._dual_norms)
        edited = self._edited(current, of_gradient["l2"], row)
        along = view(row, "loss_along")
        scale = _common_scale(current.microbatches)
        if self._densities is not None:
            self._densities.begin(current.active, segment.start, segment.stop)
        # Where nothing is copied, there is room for a replay's gradients; the wrappers of parallel training average
        # gradients on their own schedule; and a graph's are there when all of it has run.
        early = self._takes_early and self._ranks.plain_gradients() and self._player is None
        early = early and (edited or not current.lent)
        with (
            DeferredInterrupt() as interrupt,
            self._set_aside(current, segment, *((m.modules, m.random) for m in current.microbatches)),
            Arrivals(self._parameters, current.arrivals if early else None, self._bucket_bytes) as arrivals,
        ):
            if edited:
                self._recover_gradient(current, segment, arrivals, interrupt)
                of_gradient = self._gradient_norms(current, self._dual_norms)
            self._measure_ends(row, current, segment, current.active, of_gradient)

            def gradient_at(
                gamma: float,
                into: Tensor | None,
                norms: TensorNorms | None = None,
                densities: DensityCounter | None = None,
            ) -> Tensor:
                """Return the loss; hand grad f(x_t + gamma d) - grad f(x_t) to `norms`, coordinates to `into`."""
                segment.move_to(gamma)

                def consume(where: Sequence[int], gradients: Sequence[Tensor]) -> None:
                    if self._overwritten(current, where, gradients):
                        return
                    if self._probes:
                        torch._foreach_div_(list(gradients), len(current.microbatches))
                    if into is not None:
                        self._coordinates.read(where, gradients, into)
                    if densities is not None:
                        for position, gradient in zip(where, gradients, strict=True):
                            densities.add(position, gamma, current.gradient[position], gradient)
                    if norms is not None:
                        norms.add(where, gradients, [current.gradient[i] for i in where], consumed=True)

                with arrivals.taken_by(consume):
                    loss = self._evaluate(current, interrupt)
                if norms is None:
                    return loss
                # A tensor whose gradient did not arrive this time counts as having gradient 0 there.
                for position in norms.missing():
                    first = current.gradient[position]
                    if first is not None:
                        norms.add([position], [first], [None])
                        if densities is not None:
                            densities.add(position, gamma, first, None)
                return loss

            if not self._replay_checked and not edited:
                self._replay_checked = True
                gradient_at(0.0, None, self._norms)
                error = _unscaled(self._norms.result(), scale)["l2"]
                view(row, "replay_error").copy_(torch.linalg.vector_norm(error))
            at_end = None
            for i, gamma in enumerate(self._gammas):
                into = view(row, "coordinate/grad_along")[i] if self._layout.has("coordinate/grad_along") else None
                loss = gradient_at(gamma, into, self._dual_norms, self._densities)
                norms = _unscaled(self._dual_norms.result(), scale)
                along[i].copy_(loss)
                for geometry in self._geometries:
                    view(row, geometry.dataset("grad_diff"))[i].copy_(norms[geometry.gradient])
                if gamma == 1.0:
                    at_end = (loss, into)
            if self._endpoint:
                into = view(row, "coordinate/grad_next") if self._layout.has("coordinate/grad_next") else None
                if at_end is None:
                    at_end = (gradient_at(1.0, into), into)
                elif into is not None and at_end[1] is not None:
                    into.copy_(at_end[1])
                view(row, "loss_next").copy_(at_end[0])
            if scale is not None:
                for name in ("coordinate/grad_along", "coordinate/grad_next"):
                    if self._layout.has(name):
                        view(row, name).div_(scale)
        return self._ranks.join(row)

    def _edited(self, current: _Step, norms: Tensor, row: Tensor) -> bool:
        """Say whether the gradient that is lent was changed since (clipping does), so that it has to be found again.

        Writes that go past the version counter (those through `.data` do) show in the norms. On the CPU these can be
        read at once; elsewhere the step is flagged, and later ones copy their gradients.
        """
        if any(_imprint(gradient) != imprint for gradient, imprint in current.lent.values()):
            return True
        if current.lent_norms is None:
            return False
        changed = (norms != current.lent_norms) & ~(norms.isnan() & current.lent_norms.isnan())
        if self._device.type == "cpu":
            return bool(changed.numpy().any())
        view = self._layout.view
        view(row, "edited_grad").copy_(changed.any())
        return False

    def _overwritten(self, current: _Step, where: Sequence[int], gradients: Sequence[Tensor]) -> bool:
        """Say whether a replay's gradients lie where the lent ones lay: the loop has come to use CUDA graphs meanwhile.

        The step is flagged then, and later ones copy their gradients.
        """
        if not current.lent or not any(
            position in current.lent and current.lent[position][1][0] == gradient.data_ptr()
            for position, gradient in zip(where, gradients, strict=True)
        ):
            return False
        self._in_graphs = True
        current.flags |= Status.OTHER_GRADIENT
        return True

    def _recover_gradient(
        self, current: _Step, segment: Segment, arrivals: Arrivals, interrupt: DeferredInterrupt
    ) -> None:
        """Evaluate the gradient at x_t again, training having changed its own, and copy gradients from now on."""
        self._borrows = False
        for position in current.lent:
            current.gradient[position] = None
        current.lent = {}

        def keep(where: Sequence[int], gradients: Sequence[Tensor]) -> None:
            for position, gradient in zip(where, gradients, strict=True):
                current.gradient[position] = gradient.detach() if self._player is None else gradient.detach().clone()

        segment.move_to(0.0)
        with arrivals.taken_by(keep):
            self._evaluate(current, interrupt)

    def _measure_ends(
        self, row: Tensor, current: _Step, segment: Segment, positions: list[int], of_gradient: dict[Kind, Tensor]
    ) -> None:
        """Fill in what is known without evaluating anything: the gradient at x_t, the step, their coordinates."""
        view = self._layout.view
        scale = _common_scale(current.microbatches)
        view(row, "loss").copy_(self._joined(current.losses))
        arrived = [i for i, gradient in enumerate(current.gradient) if gradient is not None]
        of_gradient = _unscaled(of_gradient, scale)
        along = [current.gradient[i] for i in positions]
        self._step_norms.add(positions, segment.parameters_to_move(), segment.start, along, consumed=True)
        of_step, slope = self._step_norms.result_and_product()
        for geometry in self._geometries:
            view(row, geometry.dataset("grad_norm")).copy_(of_gradient[geometry.gradient])
            view(row, geometry.dataset("step_norm")).copy_(of_step[geometry.displacement])
        view(row, "slope").copy_(slope if scale is None else slope / scale)
        view(row, "rounding").copy_(self._rounding(segment, positions))
        if current.foreign is not None:
            view(row, "foreign_grad").copy_(current.foreign)
        if current.noise is not None:
            view(row, "grad_noise").copy_(current.noise)
        if self._layout.has("coordinate/grad"):
            grad, moved = view(row, "coordinate/grad"), view(row, "coordinate/displacement")
            self._coordinates.read(arrived, [g for g in current.gradient if g is not None], grad)
            if scale is not None:
                grad.div_(scale)
            start = torch.zeros_like(moved)
            self._coordinates.read(positions, segment.start, start)
            self._coordinates.read(positions, segment.stop, moved)
            moved.sub_(start)

    def _rounding(self, segment: Segment, positions: list[int]) -> Tensor:
        """Return by how much rounding may put the parameters off x_t + gamma d, in the 2-norm, but for O(u ‖gamma d‖).

        Let u be half the machine epsilon of a tensor's dtype and m its smallest normal number. The point is computed as
        x_t + gamma d, or x_{t+1} - (1 - gamma) d beyond the middle, in float32 or wider, and rounded to the dtype: each
        coordinate is then off by at most u (|x_j + gamma d_j| + m), m for numbers that are not normal, and by u |d_j|
        and u |gamma d_j| from the difference and the product where these are computed in the same dtype. In the
        2-norm, over n coordinates, that is at most u (‖x_t‖ + sqrt(n) m) and a small multiple of u ‖d‖: with u below
        0.004 for every dtype, only the first can come near 1 % of ‖gamma d‖.
        """
        self._norms.add(positions, segment.start, [None] * len(positions))
        half_eps, least = self._resolution
        return torch.linalg.vector_norm((self._norms.result()["l2"] + least) * half_eps)

    def _evaluate(self, current: _Step, interrupt: DeferredInterrupt) -> Tensor:
        """Evaluate all microbatches at the present parameters, gradients going to `.grad`; return the loss."""
        if self._player is not None and current.played is None:
            current.played = self._player.captured(current.microbatches)
        losses: list[Tensor] = []
        for microbatch in current.played or current.microbatches:
            with interrupt.allowed():
                losses.append(self._to_row_device(microbatch.evaluate()))
        return self._joined(losses)

    def _joined(self, losses: Sequence[Tensor]) -> Tensor:
        """Return the loss of the step: the microbatches' sum, or the probes' mean."""
        total = torch.stack(list(losses)).sum() if len(losses) > 1 else losses[0]
        return total / len(losses) if self._probes else total

    def _measure_probes_at_start(self) -> None:
        """Evaluate the probes at x_t: their mean gradient and, of several, its standard deviation, norm-wise.

        With g_i the n probes' gradients and m_i the mean of the first i,
        sum_i ‖g_i - m_n‖^2 = sum_{i>1} (i - 1) / i ‖g_i - m_{i-1}‖^2 (Welford 1962), one gradient held at a time.
        """
        current = self._current = _Step(gradient=[None] * len(self._parameters))
        current.versions = [p._version for p in self._parameters]
        models, generators = reached(*self._probes, self._model)
        random_state = RandomState.seeded(self._seed, *generators)
        modules = ModuleState.capture(*models)
        autocast = AutocastState.capture(self._device.type)
        noise: Tensor | None = None
        with DeferredInterrupt() as interrupt, self._set_aside(current, None, (modules, random_state)):
            for seen, probe in enumerate(self._probes):
                microbatch = Microbatch(_constant(probe), random_state, modules, autocast, None)

                def consume(where: Sequence[int], gradients: Sequence[Tensor], seen: int = seen) -> None:
                    for position, gradient in zip(where, gradients, strict=True):
                        total = current.gradient[position]
                        if seen:
                            mean = None if total is None else total / seen
                            self._norms.add([position], [gradient], [mean])
                        if total is None:
                            current.gradient[position] = gradient.detach().clone()
                        else:
                            total.add_(gradient)

                with counted_arrivals(self._parameters) as arrivals, torch.no_grad():
                    with interrupt.allowed():
                        current.losses.append(self._to_row_device(microbatch.evaluate()))
                    arrived = [i for i, p in enumerate(self._parameters) if p.grad is not None]
                    consume(arrived, [local(self._parameters[i].grad) for i in arrived])  # type: ignore[arg-type]
                    for parameter in self._parameters:
                        parameter.grad = None
                for parameter, count in arrivals.items():
                    current.arrivals[parameter] = current.arrivals.get(parameter, 0) + count
                if seen:
                    for position in self._norms.missing():
                        total = current.gradient[position]
                        if total is not None:
                            self._norms.add([position], [total / seen], [None])
                    part = self._norms.result()["l2"] * math.sqrt(seen / (seen + 1))
                    noise = part if noise is None else torch.hypot(noise, part)
                current.microbatches.append(microbatch)
            for total in current.gradient:
                if total is not None:
                    total.div_(len(self._probes))
        if noise is not None:
            current.noise = noise / math.sqrt(len(self._probes) - 1)

    @contextlib.contextmanager
    def _set_aside(
        self, current: _Step, segment: Segment | None, *states: tuple[ModuleState, RandomState]
    ) -> Iterator[None]:
        """Run a block that may change gradients, buffers, flags, random state and parameters; put all of it back.

        Args:
            current: The step.
            segment: What the parameters are moved along; None where they stay.
            states: What evaluations begin with.
        """
        random_state = RandomState.capture(*{g: None for _, state in states for g, _ in state.others})
        models = list(dict.fromkeys(model for state, _ in states for model in state.models))
        modules = ModuleState.capture(*models)
        leaves = [leaf for leaf, _ in current.leaves]
        holders = list(dict.fromkeys([*self._parameters, *(p for m in models for p in m.parameters()), *leaves]))
        gradients = [holder.grad for holder in holders]
        if self._in_graphs:
            gradients = [None if gradient is None else gradient.clone() for gradient in gradients]
        contents = [
            gradient.clone() if gradient is not None and self._ranks.shares_gradient_memory() else None
            for gradient in gradients
        ]
        displaced = [
            (parameter, parameter.detach().clone())
            for parameter, _, version in current.companions
            if parameter._version != version
        ]
        try:
            for holder in holders:
                holder.grad = None
            for parameter, _ in displaced:
                copy = next(copy for candidate, copy, _ in current.companions if candidate is parameter)
                parameter.detach().copy_(copy)
            yield
        finally:
            if segment is not None:
                segment.put_back()
            for parameter, copy in displaced:
                parameter.detach().copy_(copy)
            for holder, gradient, content in zip(holders, gradients, contents, strict=True):
                holder.grad = gradient
                if gradient is not None and content is not None:
                    gradient.detach().copy_(content)
            modules.restore()
            random_state.restore()

    # --- small things ---

    def _to_row_device(self, loss: Tensor) -> Tensor:
        return loss.detach().reshape(()).to(self._device, self._norms.dtype, non_blocking=True, copy=True)

    def _put_lr(self, row: Tensor, rates: Sequence[float | Tensor]) -> None:
        place = self._layout.view(row, "lr")
        for i, lr in enumerate(rates):
            if isinstance(lr, Tensor):
                place[i].copy_(lr.detach().reshape(()), non_blocking=True)
            else:
                place[i].fill_(lr)

    def _check_groups(self) -> None:
        ours = {id(parameter) for parameter in self._parameters}
        groups = self._optimizer.param_groups
        if len(groups) != self._groups or any(id(p) not in ours for group in groups for p in group["params"]):
            raise RecorderError(
                "The optimizer has gained parameters since the recorder was attached; close it and attach a new one, "
                "with a trace of its own."
            )

    def _objective(self) -> str:
        """Return what f is, in words."""
        what = f"mean of {len(self._probes)} probe losses" if self._probes else "the step's mini-batch loss"
        return what if self._ranks.alone else f"{what}, mean over {self._ranks.size} ranks"

    def _description(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        optimizer = self._optimizer
        groups = [
            {key: plain(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        ]
        return {
            "title": "Local smoothness of a training loss along its optimizer steps",
            "lsmooth_version": __version__,
            "torch_version": str(torch.__version__),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "model": type(self._model).__name__,
            "optimizer": type(optimizer).__name__,
            "optimizer_groups": groups,
            "parameter_shapes": [list(p.shape) for p in self._parameters],
            "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in self._parameters})),
            "device": str(self._device),
            "seed": self._seed,
            "every": self._every if isinstance(self._every, int) else "callable",
            "endpoint": int(self._endpoint),
            "norms": [geometry.name for geometry in self._geometries],
            "objective": self._objective(),
            "user_metadata": plain(dict(metadata)),
        }


@contextlib.contextmanager
def _unwatched(recorders: Sequence[Recorder]) -> Iterator[None]:
    """Run a block whose losses are no business of the recorders' watches."""
    for recorder in recorders:
        recorder._watch.deaf = True
    try:
        yield
    finally:
        for recorder in recorders:
            recorder._watch.deaf = False


def _imprint(gradient: Tensor) -> tuple[int, int]:
    """Return what changes when a gradient is replaced or written to."""
    part = local(gradient)
    return part.data_ptr(), part._version + (gradient._version if part is not gradient else 0)


def _constant(closure: Closure) -> Callable[[], Closure]:
    return lambda: closure


def _common_scale(microbatches: Sequence[Microbatch]) -> Tensor | None:
    """Return the factor that the gradients carry: a scaler does not change it between two steps."""
    return microbatches[0].scale


def _unscaled(norms: dict[Kind, Tensor], scale: Tensor | None) -> dict[Kind, Tensor]:
    return norms if scale is None else {kind: norm / scale for kind, norm in norms.items()}


def _closure_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return any(callable(value) and not isinstance(value, Tensor) for value in (*args[1:], kwargs.get("closure")))
