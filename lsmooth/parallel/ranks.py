"""Many processes, one function: what a recorder does under DistributedDataParallel and fully_shard (FSDP2).

Each rank evaluates its own batch; gradients are averaged over ranks by the model's wrapper, so that the function
measured is the mean of the ranks' losses. Under DistributedDataParallel every rank then holds the whole gradient, and
only losses need to be averaged. Under `fully_shard` each rank holds a shard of every tensor, and norms are joined
through their squares. Either way it takes one all-reduce a measured step (a second one for largest entries, where
"linf" is measured on shards), and rank 0 writes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError
from lsmooth.join import Join
from lsmooth.parallel.refusals import check_ddp, check_shards, refuse_unknown
from lsmooth.parallel.shards import is_sharded


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that a compiled or data-parallel wrapper is around."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class Ranks:
    """The processes that train together, seen from one of them.

    Args:
        model: The model as the training loop calls it, wrapped or not.
        names: Names of the measured parameters.
        parameters: The measured parameters.

    Raises:
        InvalidArgumentError: The model is parallel in a way that cannot be measured.

    Attributes:
        rank: This process's rank, 0 where it is alone.
        size: How many there are.
        sharded: Whether the ranks hold shards of the parameters.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], parameters: Sequence[Tensor]) -> None:
        refuse_unknown(model)
        here = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.size = torch.distributed.get_world_size() if here else 1
        self.rank = torch.distributed.get_rank() if here else 0
        self._ddp = _ddp_of(model)
        self.sharded = any(is_sharded(p) for p in parameters)
        self._copies = 1
        if self.sharded:
            self._copies = check_shards(model, names, parameters, self.size)
        elif self.size > 1 and self._ddp is None:
            raise InvalidArgumentError(
                f"torch.distributed runs {self.size} ranks, but the model is neither wrapped in "
                "DistributedDataParallel nor sharded by fully_shard, so that its gradient is this rank's alone; give "
                "the recorder the wrapped model that the loop calls."
            )
        if self._ddp is not None:
            check_ddp(self._ddp, self.size)
        self._indices: Tensor | None = None
        self._squared: Tensor | None = None
        self._factors: Tensor | None = None
        self._maxima: Tensor | None = None

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.size == 1

    def agree(self, open_file: Callable[[], Any], **facts: Any) -> Any:
        """Open the trace on rank 0; return what `open_file` returned there, None elsewhere, or raise on every rank.

        Raises:
            InvalidArgumentError: The ranks' `facts` differ.
            Exception: The error that rank 0 had, commonly a TraceError.
        """
        if self.alone:
            return open_file()
        everyone: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(everyone, facts)
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs[name] != value:
                    raise InvalidArgumentError(
                        f"Rank {rank} and rank 0 measure different things: their {name} differ; every rank must make "
                        "the same recorder, on the same model (pipeline stages are not measured)."
                    )
        opened, outcome = None, [None]
        if self.rank == 0:
            try:
                opened = open_file()
            except Exception as error:
                # The others wait to hear of it.
                outcome = [error]  # type: ignore[list-item]
        torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[0] is not None:
            raise outcome[0]
        return opened

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value, on every rank."""
        if self.alone:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def prepare(
        self, places: Mapping[str, slice], joins: Mapping[str, Join | Sequence[Join]], device: torch.device
    ) -> None:
        """Work out, once, how rows are joined.

        Args:
            places: Where each quantity stands in a row.
            joins: How its parts make the whole; of one that has a join for each tensor, these over and over.
            device: Where rows are.

        Raises:
            InvalidArgumentError: A quantity cannot be told from its values on shards.
        """
        if self.alone:
            return
        indices: list[int] = []
        maxima: list[int] = []
        squared: list[bool] = []
        factors: list[float] = []
        for name, place in places.items():
            join = joins[name]
            for position, of_one in zip(
                range(place.start, place.stop), itertools.cycle([join] if isinstance(join, Join) else join)
            ):
                if of_one == Join.MEAN:
                    share = 1.0 / self.size
                elif not self.sharded or of_one == Join.SAME:
                    continue
                elif of_one == Join.MAX:
                    maxima.append(position)
                    continue
                elif of_one == Join.UNKNOWN:
                    raise InvalidArgumentError(
                        f"{name} cannot be joined from the shards of fully_shard; leave it out, or train with "
                        "DistributedDataParallel."
                    )
                else:
                    share = 1.0 / self._copies
                indices.append(position)
                squared.append(of_one == Join.NORM)
                factors.append(share)
        self._indices = torch.tensor(indices, device=device)
        self._squared = torch.tensor(squared, device=device)
        self._factors = torch.tensor(factors, dtype=torch.float64, device=device)
        if maxima:
            self._maxima = torch.tensor(maxima, device=device)

    def join(self, row: Tensor) -> Tensor:
        """Return the row of the whole, given each rank's, (width,): one all-reduce, and one more for maxima."""
        if self.alone:
            return row
        assert self._indices is not None
        assert self._squared is not None
        assert self._factors is not None
        part = row[self._indices]
        part = torch.where(self._squared, part.square(), part) * self._factors
        torch.distributed.all_reduce(part)
        row[self._indices] = torch.where(self._squared, part.sqrt(), part)
        if self._maxima is not None:
            largest = row[self._maxima]
            torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
            row[self._maxima] = largest
        return row

    def agreed(self, values: Tensor, joins: Sequence[Join]) -> list[float]:
        """Return some numbers of the whole on the host, the same on every rank: one all-reduce, which is waited for.

        Args:
            values: This rank's, (n,).
            joins: How each makes the whole: SUM of shards, MEAN for all else.
        """
        if self.alone:
            return values.tolist()
        torch.distributed.all_reduce(values)
        shares = [self._copies if self.sharded and join == Join.SUM else self.size for join in joins]
        return [value / share for value, share in zip(values.tolist(), shares, strict=True)]

    def plain_gradients(self) -> bool:
        """Say whether `.grad` is autograd's alone, so that it may be taken away during backward, and read later.

        The wrappers average gradients on their own schedule: only at the end of backward is `.grad` what it says, and
        the next backward may write to the same memory.
        """
        return self.alone and not self.sharded and self._ddp is None

    def shares_gradient_memory(self) -> bool:
        """Say whether the next backward pass writes into the memory that `.grad` of the last one lies in."""
        return self._ddp is not None and self._ddp.gradient_as_bucket_view

    def context(self) -> Callable[[], AbstractContextManager[None]]:
        """Return a factory of contexts in which a loss is evaluated as it would be now: synchronised, or not."""
        if self._ddp is None:
            return contextlib.nullcontext
        return functools.partial(_synchronised, self._ddp, bool(self._ddp.require_backward_grad_sync))


def _ddp_of(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    inner: Any = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            return inner
        inner = getattr(inner, "_orig_mod", None)
    return None


@contextlib.contextmanager
def _synchronised(ddp: nn.parallel.DistributedDataParallel, flag: bool) -> Iterator[None]:
    """Run a block in which backward passes average gradients over ranks, or, as in `no_sync`, do not."""
    before = ddp.require_backward_grad_sync
    ddp.require_backward_grad_sync = flag
    try:
        yield
    finally:
        ddp.require_backward_grad_sync = before


class SilentWriter:
    """Stands where the writer stands on rank 0, on the ranks that do not write.

    Args:
        failure: Why nothing is written on rank 0 either, None where it is.
    """

    def __init__(self, failure: str | None) -> None:
        self.failure = failure

    def put(self, block: Any, size: int = 0, steps: Sequence[int] = ()) -> None:
        """Do nothing with a block."""

    def problems(self) -> list[str]:
        """Return none: nothing goes wrong here."""
        return []

    def wait(self) -> None:
        """Return at once."""

    def close(self, next_step: int | None = None, *, wait: bool = True) -> None:
        """Return at once."""
