"""Measure smoothness in a Lightning `Trainer`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lsmooth.errors import RecorderError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        "lsmooth.integrations.lightning needs Lightning; install it with pip install 'lsmooth[lightning]'."
    ) from error

from torch import Tensor, nn

from lsmooth.integrations.successive import SuccessivePaths
from lsmooth.recorder import Recorder

if TYPE_CHECKING:
    from lsmooth.trace.writer import Mode


class SmoothnessCallback(Callback):
    """Records the smoothness of the loss that a `LightningModule` minimises, and changes nothing about the training.

    What is measured is the loss of `training_step` under automatic optimization, with accumulation and precision as
    the Trainer has them; the gradient is the loss's own, before clipping. `training_step` is called again at measured
    steps: `self.log` does nothing then, and metrics of torchmetrics are put back. What else it does (writing to a
    logger directly, appending to lists) it can leave out while `lsmooth.replay.replaying()`.

    Under optimization by hand (`automatic_optimization=False`), where Lightning allows several optimizers, the loss is
    what the method named by `loss` returns, and all optimizers take each step together: see `lsmooth.Recorder`.

    A run that is resumed from a checkpoint, or goes on by another `fit()` of its Trainer, goes on in the trace it left.
    A run that starts over after it failed (a smaller batch after running out of memory) replaces what this callback has
    written. Another Trainer's `fit()`, after one that came to its end, is recorded in `run-2.h5`; a warning says so.

    Args:
        path: Where the trace goes.
        loss: Name of the module's method that returns the loss, under optimization by hand; `training_step` calls it,
            and `self.manual_backward` on what it returns.
        every: Measure every `every`-th optimizer step, or the steps for which `every(step)` is true.
        mode: "x" refuses an existing file (unless a run is being resumed), "w" replaces it.
        **arguments: All else that `lsmooth.Recorder` takes.

    Examples:
        >>> trainer = Trainer(callbacks=[SmoothnessCallback("run.h5", every=50)])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        *,
        loss: str | None = None,
        every: int | Callable[[int], bool] = 50,
        mode: Mode = "x",
        **arguments: Any,
    ) -> None:
        self._loss = loss
        self._paths = SuccessivePaths(path, mode)
        self._arguments = {"every": every, **arguments}
        self._put_back: Callable[[], None] | None = None
        self._checkpoint: dict[str, Any] | None = None
        self.recorder: Recorder | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizers and the loss."""
        self._detach()
        strategy = trainer.strategy
        self._check(trainer, pl_module)
        checkpoint, self._checkpoint = self._checkpoint, None
        resumed = trainer.global_step > 0
        path, mode = self._paths.begin(resumed=resumed)
        before = self.recorder
        self.recorder = Recorder(strategy.model or pl_module, trainer.optimizers, path, mode=mode, **self._arguments)
        self._paths.begun(path, resumed=resumed)
        if resumed:
            self.recorder.load_state_dict(checkpoint or {"step": _steps_so_far(trainer, before)})
        owner, name = (strategy, "training_step") if self._loss is None else (pl_module, self._loss)
        vars(owner)[name] = self.recorder.watch(
            getattr(owner, name),
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            during_replay=lambda: _without_side_effects(pl_module),
        )
        self._put_back = lambda: vars(owner).pop(name)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the trace."""
        self._detach()
        self._paths.ended()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish the trace with what was measured until then."""
        if self.recorder is not None:
            # Nothing is evaluated any more.
            self.recorder.__exit__(type(exception), exception, exception.__traceback__)
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the recording, all measured so far being in the trace."""
        return self.recorder.state_dict() if self.recorder is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds of the recording, for the recorder that continues it."""
        self._checkpoint = state_dict or None

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse kinds of training that cannot be measured.

        Raises:
            RecorderError: The training is of such a kind.
        """
        kind, strategy = type(module).__name__, trainer.strategy
        if not module.automatic_optimization and self._loss is None:
            raise RecorderError(
                f"{kind} optimizes by hand (automatic_optimization=False), where the callback cannot tell which losses "
                "belong to a step; name the method that returns the loss, SmoothnessCallback(path, loss=...), or make "
                "an lsmooth.Recorder in on_train_start and call recorder.backward(closure)."
            )
        if module.automatic_optimization and self._loss is not None:
            raise RecorderError(
                f"{kind} leaves optimization to Lightning, where training_step returns the loss; leave out "
                f"loss={self._loss!r}."
            )
        if self._loss is not None and not callable(getattr(module, self._loss, None)):
            raise RecorderError(f"{kind} has no method {self._loss!r}; name the one that returns the loss.")
        # Subclasses of these (as DeepSpeed's is) own gradients and steps.
        if type(strategy) not in (DDPStrategy, SingleDeviceStrategy):
            raise RecorderError(
                f"{type(strategy).__name__} is not measured; use the strategy 'ddp', or lsmooth.Recorder in a loop of "
                "your own over fully_shard."
            )
        if self._loss is not None and isinstance(strategy, DDPStrategy):
            raise RecorderError(
                f"{kind} optimizes by hand on several devices, where its loss alone does not pass through "
                "DistributedDataParallel; train on one device, or use lsmooth.Recorder in a loop of your own."
            )

    def _detach(self) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None
        if self.recorder is not None:
            self.recorder.close()


def _steps_so_far(trainer: Trainer, before: Recorder | None) -> int:
    """Return how many steps a Trainer has taken, of whose last recorder there is no checkpoint."""
    count = len(trainer.optimizers)
    # Lightning counts a step of each optimizer, and not how often all of them have stepped.
    return before.step if before is not None and count > 1 else trainer.global_step // count


@contextlib.contextmanager
def _without_side_effects(module: nn.Module) -> Iterator[None]:
    """Run a block in which `self.log` does nothing, and after which metrics are what they were."""
    logging = [part for part in module.modules() if isinstance(part, LightningModule)]
    metrics = [(metric, _state_of(metric)) for metric in module.modules() if isinstance(metric, Metric)]
    names = ("log", "log_dict")
    shadowed: list[dict[str, Any]] = [
        {name: vars(part)[name] for name in names if name in vars(part)} for part in logging
    ]
    try:
        for part in logging:
            vars(part).update(log=_do_nothing, log_dict=_do_nothing)
        yield
    finally:
        for part, own in zip(logging, shadowed, strict=True):
            for name in names:
                del vars(part)[name]
            vars(part).update(own)
        for metric, (attributes, contents) in metrics:
            vars(metric).clear()
            vars(metric).update(attributes)
            for name, content in contents.items():
                if isinstance(content, list):
                    attributes[name][:] = content
                else:
                    attributes[name].detach().copy_(content)


def _state_of(metric: Metric) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a metric's attributes, and copies of what its states hold."""
    attributes = dict(vars(metric))
    contents: dict[str, Any] = {}
    for name in metric._defaults:
        state = attributes[name]
        contents[name] = state.detach().clone() if isinstance(state, Tensor) else list(state)
    return attributes, contents


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None
