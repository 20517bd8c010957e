"""Train a task over several processes (`torchrun`), each on its part of every batch.

Parts are weighted so that the mean over ranks, which DistributedDataParallel takes of the gradients, is the loss of the
whole batch: the run is the same function's as with one process. What a model draws or gathers while it computes is
each rank's own: dropout masks, and the statistics of batch norm, which are of a part of the batch.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError
from lsmooth.tasks.task import Problem


def ranks_wanted() -> int:
    """Return the number of processes that `torchrun` started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str) -> str:
    """Join the processes that `torchrun` started, before a model is built; return the device of this process.

    Args:
        device: "cpu", or "cuda" for one GPU per process.

    Raises:
        InvalidArgumentError: The device is one that several processes cannot share.
    """
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise InvalidArgumentError(f"There is no device {device!r}; give --device cpu or cuda.") from None
    if kind.type == "cuda":
        if kind.index is not None:
            raise InvalidArgumentError(f"Several processes cannot share {device}; give --device cuda, one GPU each.")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    elif kind.type != "cpu":
        raise InvalidArgumentError(f"Several processes train on cpu or cuda, not on {device}.")
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Leave the group of processes; the last thing that a process does before it ends."""
    dist.destroy_process_group()
    # DistributedDataParallel keeps gloo's threads alive. One that waits for the interpreter, to let go of what it held
    # during the last operation, crashes the process if that is ending by then (pytorch/pytorch#179291).
    time.sleep(0.2)


def on_rank_0(value: Any) -> Any:
    """Return the value of the first process on every process."""
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


class _Loss(nn.Module):
    """Computes a problem's loss in `forward`, the call that DistributedDataParallel wraps.

    The model hangs under the name that torch.compile's wrapper has for it: parameters are named as without.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._orig_mod = problem.model
        self._problem = problem

    def forward(self, batch: Any, carried: Any, weight: float) -> tuple[Tensor, Any]:
        loss, carried = self._problem.loss(batch, carried)
        return loss * weight, carried


class Parallel:
    """One process's share of a training run.

    Args:
        problem: The run, built alike on every rank.

    Attributes:
        rank: This process's rank.
        size: Number of processes.
        model: What the recorder is given: the problem's model in DistributedDataParallel.
    """

    def __init__(self, problem: Problem) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._sums = problem.loss_is_a_sum
        self.model = nn.parallel.DistributedDataParallel(_Loss(problem))
        # A group of CPU processes, so that their messages wait for no GPU.
        self._hosts = dist.new_group(backend="gloo")
        self._asked: Any = None
        self._flags = torch.zeros(0, dtype=torch.int32)
        # Weights and the order of batches are the same everywhere; dropout is not.
        if self.rank:
            torch.manual_seed(problem.seed * 1_000_003 + self.rank)

    def part(self, batch: Any) -> tuple[Any, float]:
        """Return this rank's part of a batch, and its weight (see `part_of`)."""
        return part_of(batch, self.rank, self.size, sums=self._sums)

    def loss(self, batch: Any, carried: Any, weight: float) -> tuple[Tensor, Any]:
        """Return the weighted loss of a part, and what goes on to the next."""
        loss, carried = self.model(batch, carried, weight)
        return loss, carried

    def on_rank_0(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on rank 0; an empty list elsewhere."""
        everyone: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, everyone, group=self._hosts)
        return everyone or []

    def ask(self, wishes: Sequence[bool]) -> None:
        """Begin to send this rank's wishes to the others, without waiting for them."""
        self._flags = torch.tensor(wishes, dtype=torch.int32)
        self._asked = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._hosts, async_op=True)

    def heard(self) -> list[bool]:
        """Return which wishes any rank had when all asked last, the same on every rank; none before that."""
        if self._asked is None:
            return []
        self._asked.wait()
        self._asked = None
        return [bool(flag) for flag in self._flags.tolist()]

    def mean(self, numbers: Tensor) -> Tensor:
        """Return the mean over ranks."""
        total = numbers.clone()
        dist.all_reduce(total)
        return total / self.size


def part_of(batch: Any, rank: int, size: int, *, sums: bool) -> tuple[Any, float]:
    """Return a rank's part of a batch, and what its loss is multiplied by for the mean over ranks to be the batch's.

    A batch with fewer examples than there are ranks is taken whole by each.

    Args:
        batch: A tensor, or a (named) tuple or dataclass of tensors whose first dimension is the examples'.
        rank: Whose part.
        size: Number of ranks.
        sums: Whether losses are sums over examples, not means.
    """
    count = _length(batch)
    if count < size:
        return batch, 1.0
    start, stop = count * rank // size, count * (rank + 1) // size
    weight = size if sums else size * (stop - start) / count
    return _cut(batch, lambda tensor: tensor[start:stop]), float(weight)


def _cut(batch: Any, cut: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch of the same kind whose tensors have been cut: a tensor, a (named) tuple or a dataclass of them."""
    if isinstance(batch, Tensor):
        return cut(batch)
    if isinstance(batch, tuple):
        parts = [_cut(item, cut) for item in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **{name: _cut(value, cut) for name, value in fields.items()})
    return batch


def _length(batch: Any) -> int:
    """Return the number of examples in a batch: the length of its tensors along their first dimension."""
    lengths: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        lengths.append(len(tensor))
        return tensor

    _cut(batch, note)
    return min(lengths)
