"""Measure smoothness in a Hugging Face `Trainer`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lsmooth.errors import RecorderError

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "lsmooth.integrations.transformers needs Transformers and Accelerate; install them with "
        "pip install 'lsmooth[transformers]'."
    ) from error

from lsmooth.integrations.successive import SuccessivePaths
from lsmooth.recorder import Recorder

if TYPE_CHECKING:
    from lsmooth.trace.writer import Mode


class SmoothnessCallback(TrainerCallback):
    """Records the smoothness of the loss that a `Trainer` minimises, and changes nothing about the training.

    What is measured is `Trainer.compute_loss`, whoever defined it, with everything that the Trainer makes of it:
    gradient accumulation and its normalisation (`num_items_in_batch`), label smoothing, mixed precision. The gradient
    is the loss's own, before `max_grad_norm` clips it. `compute_loss` is called again at measured steps; one of your
    own that does more than compute a loss can ask `lsmooth.replay.replaying()`.

    A run that is resumed from a checkpoint goes on in the trace it left. A run that starts over after it failed (a
    smaller batch after running out of memory) replaces what this callback has written. Another `train()`, after one
    that came to its end, is recorded beside it, in `run-2.h5`, and a warning says so.

    Args:
        path: Where the trace goes.
        every: Measure every `every`-th optimizer step, or the steps for which `every(step)` is true.
        mode: "x" refuses an existing file (unless a run is being resumed), "w" replaces it.
        **arguments: All else that `lsmooth.Recorder` takes.

    Examples:
        >>> trainer.add_callback(SmoothnessCallback("run.h5", every=50))  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        *,
        every: int | Callable[[int], bool] = 50,
        mode: Mode = "x",
        **arguments: Any,
    ) -> None:
        self._paths = SuccessivePaths(path, mode)
        self._arguments = {"every": every, **arguments}
        self._put_back: Callable[[], None] | None = None
        self.recorder: Recorder | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the optimizer and the loss."""
        self._detach()
        trainer = _calling_trainer()
        if trainer.is_deepspeed_enabled:
            raise RecorderError(
                "DeepSpeed is not measured, since its engine owns gradients and steps; train with "
                "DistributedDataParallel or FSDP2 (fsdp_version 2)."
            )
        optimizer = kwargs["optimizer"]
        resumed = state.global_step > 0
        path, mode = self._paths.begin(resumed=resumed)
        self.recorder = Recorder(trainer.model_wrapped, optimizer, path, mode=mode, **self._arguments)
        self._paths.begun(path, resumed=resumed)
        if resumed:
            self.recorder.load_state_dict({"step": state.global_step})
        # On the instance, over the class's method or another callback's wrapper.
        attributes = vars(trainer)
        own = attributes.get("compute_loss")
        attributes["compute_loss"] = self.recorder.watch(trainer.compute_loss, scaler=trainer.accelerator.scaler)

        def put_back() -> None:
            if own is None:
                attributes.pop("compute_loss", None)
            else:
                attributes["compute_loss"] = own

        self._put_back = put_back

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish the trace."""
        self._detach()
        self._paths.ended()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have all that was measured up to a checkpoint in the trace, so that a resumed run leaves no gap."""
        if self.recorder is not None:
            self.recorder.flush()

    def _detach(self) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None
        if self.recorder is not None:
            self.recorder.close()


def _calling_trainer() -> Trainer:
    """Return the Trainer that is calling back: callbacks are told of model and optimizer, and not of their Trainer."""
    frame = sys._getframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, Trainer):
            return candidate
        frame = frame.f_back  # type: ignore[assignment]
    raise RecorderError("SmoothnessCallback works inside a transformers.Trainer; give it to one with add_callback.")
