"""The training loop that `lsmooth train`, `demo` and `compare` share.

Between two reports nothing is read from the device: losses and counts add up there.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsmooth.recorder import Recorder
from lsmooth.tasks.parallel import Parallel
from lsmooth.tasks.task import Problem, Split


@dataclass(frozen=True)
class Report:
    """Losses and metrics at the end of an epoch, of `report_every` steps, or of the run.

    Attributes:
        step: Optimizer steps done.
        epoch: Epochs done, a whole number at the end of one; else with a fraction.
        train_loss: Mean training loss since the last report, as it is shown (`Problem.shown_loss`).
        clipped: Steps since the last report whose gradient was clipped.
        steps: Steps since the last report.
        metrics: Metrics on the held-out split.
        seconds: Training time so far, evaluation left out.
    """

    step: int
    epoch: float
    train_loss: float
    clipped: int
    steps: int
    metrics: Mapping[str, float]
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether the training loss is infinite or not a number."""
        return not math.isfinite(self.train_loss)


class TrainingRun:
    """A model being trained: iterate over `steps`, look at it in between, save it, go on.

    Args:
        problem: Model, batches and loss.
        optimizer: Its groups' `lr` are the base rates that `problem.lr_factor` multiplies.
        max_norm: Clip gradients to this 2-norm before each step; None for no clipping.
        report_every: Steps between two reports; None for a report after each epoch.
        amp: Run forward passes in bfloat16 where autocast deems it safe and the device can.
        parallel: This process's share, where several train together.

    Attributes:
        step: Optimizer steps done.
        reports: What was reported so far.
        loss: Loss of the last step as it is shown, on the device; None before the first.
        parallel: This process's share, where several train together.
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        *,
        max_norm: float | None = None,
        report_every: int | None = None,
        amp: bool = False,
        parallel: Parallel | None = None,
    ) -> None:
        self.problem = problem
        self.optimizer = optimizer
        self.step = 0
        self.reports: list[Report] = []
        self.loss: Tensor | None = None
        self._max_norm = max_norm
        self._report_every = report_every
        self._amp = amp
        self.parallel = parallel
        self._base_lr = [float(group["lr"]) for group in optimizer.param_groups]
        # Thresholds of optimizers that clip on their own, scaled by `problem.clip_factor`.
        self._thresholds = [group.get("max_norm") for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = self._parameters[0].device
        self._device_type = device.type
        self._epoch = 0
        self._batches_done = 0
        self._carried: Any = None
        # Since the last report: sum of losses, number of clipped steps; both stay on the device.
        self._sums = torch.zeros(2, device=device)
        self._seconds = 0.0

    @property
    def model(self) -> nn.Module:
        """The model as it is called in training, wrapped where several processes train together."""
        return self.problem.model if self.parallel is None else self.parallel.model

    @property
    def total_steps(self) -> int:
        """Steps of the whole run (about so many, where epochs differ in length)."""
        return self.problem.total_steps

    @property
    def lr(self) -> float:
        """Learning rate of the last step, that of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def done(self) -> bool:
        """Whether all steps were made, or the run has diverged."""
        return self._over() or bool(self.reports and self.reports[-1].diverged)

    def steps(self, recorder: Recorder | None = None, split: Split = "valid") -> Iterator[int]:
        """Train; yield the number of steps done after each, reports included.

        At each yield the run is between two steps: `state_dict` taken there continues exactly.

        Args:
            recorder: Measures the run's steps.
            split: What reports evaluate on.
        """
        backward = _backward if recorder is None else recorder.backward
        self.problem.model.train()
        since = time.monotonic()
        while not self.done:
            # In a resumed epoch, the batches that were trained on already are skipped.
            for batch in itertools.islice(self.problem.batches(self._epoch), self._batches_done, None):
                self._train_on(batch, backward)
                if self._due():
                    self._seconds += time.monotonic() - since
                    self._report(split)
                    since = time.monotonic()
                yield self.step
                if self.done:
                    return
            self._epoch, self._batches_done, self._carried = self._epoch + 1, 0, None
            if self._reported_step < self.step and (self._report_every is None or self._over()):
                self._seconds += time.monotonic() - since
                self._report(split)
                since = time.monotonic()
                yield self.step

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on from here: plain values and tensors."""
        return {
            "model": self.problem.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **self.state_of_rank(),
            "problem": self.problem.state_dict(),
            "reports": [asdict(report) for report in self.reports],
            "position": {"step": self.step, "epoch": self._epoch, "batches_done": self._batches_done},
            "seconds": self._seconds,
        }

    def state_of_rank(self) -> dict[str, Any]:
        """Return the part of `state_dict` that each process has to itself where several train together, on the CPU."""
        state = {"random": _random_state(), "carried": self._carried, "sums": self._sums}
        return {name: _to_device(value, torch.device("cpu")) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the moment of a `state_dict`, in a run of the same plan."""
        self.problem.model.load_state_dict(state["model"])
        # Hyperparameters come from the plan, which is checked; those in a checkpoint are not.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.problem.load_state_dict(state.get("problem", {}))
        device = self._sums.device
        self._sums = state["sums"].to(device)
        self._carried = _to_device(state["carried"], device)
        self.reports = [Report(**report) for report in state["reports"]]
        position = state["position"]
        self.step, self._epoch, self._batches_done = position["step"], position["epoch"], position["batches_done"]
        self._seconds = state["seconds"]
        _restore_random_state(state["random"])

    # --- one step ---

    def loss_on(self, batch: Any, carried: Any) -> Callable[[], tuple[Tensor, Any]]:
        """Return a closure that computes the training loss of a batch, or of this process's part of it.

        Args:
            batch: The batch.
            carried: As for `Problem.loss`, which says what the closure returns.
        """
        # The closure holds no reference to the run: the recorder searches all that a closure reads at each measured
        # step.
        problem, parallel, amp, device_type = self.problem, self.parallel, self._amp, self._device_type
        weight = 1.0
        if parallel is not None:
            batch, weight = parallel.part(batch)

        def loss() -> tuple[Tensor, Any]:
            with torch.autocast(device_type, dtype=torch.bfloat16, enabled=amp):
                if parallel is not None:
                    return parallel.loss(batch, carried, weight)
                return problem.loss(batch, carried)

        return loss

    def _train_on(self, batch: Any, backward: Callable[[Callable[[], Any]], Any]) -> None:
        where = (self.step, self._epoch, batch)
        lr_factor, clip_factor = self.problem.lr_factor(*where), self.problem.clip_factor(*where)
        for group, lr, threshold in zip(self.optimizer.param_groups, self._base_lr, self._thresholds, strict=True):
            group["lr"] = lr * lr_factor
            if threshold is not None:
                group["max_norm"] = threshold * clip_factor
        self.optimizer.zero_grad()
        trained, self._carried = backward(self.loss_on(batch, self._carried))
        self.loss = self.problem.shown_loss(trained, batch, self._carried)
        self._sums[0] += self.loss
        if self._max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
            self._sums[1] += norm > self._max_norm
        self.optimizer.step()
        self.problem.after_step()
        self.step += 1
        self._batches_done += 1

    # --- reports ---

    def _over(self) -> bool:
        if self.problem.max_steps is not None:
            return self.step >= self.problem.max_steps
        return self._epoch >= self.problem.epochs

    @property
    def _reported_step(self) -> int:
        return self.reports[-1].step if self.reports else 0

    def _due(self) -> bool:
        if self._over():
            return True
        return self._report_every is not None and self.step % self._report_every == 0

    def _report(self, split: Split) -> None:
        steps = self.step - self._reported_step
        total, clipped = (self._sums if self.parallel is None else self.parallel.mean(self._sums)).tolist()
        self._sums.zero_()
        self.reports.append(
            Report(
                step=self.step,
                # Epochs may differ in length.
                epoch=self._epoch + min(1.0, self._batches_done / self.problem.steps_per_epoch),
                train_loss=total / steps,
                clipped=round(clipped),
                steps=steps,
                metrics=self.problem.evaluate(split),
                seconds=self._seconds,
            )
        )
        self.problem.after_report(split, self.reports[-1].metrics)


def _backward(closure: Callable[[], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """Do what `Recorder.backward` does, without a recorder."""
    loss, carried = closure()
    loss.backward()
    return loss.detach(), _detached(carried)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return type(value)(_detached(item) for item in value)
    return value


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_to_device(item, device) for item in value)
    return value


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])
