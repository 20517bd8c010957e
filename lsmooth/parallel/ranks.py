"""A recorder among several processes, under DistributedDataParallel or fully_shard (FSDP2).

Each rank evaluates its own batch, and the model's wrapper averages gradients over ranks. The function measured is
therefore the mean of the ranks' losses. Under DistributedDataParallel every rank then holds the whole gradient, and
only losses must be averaged. Under `fully_shard` each rank holds a shard of every tensor, and norms are joined through
their squares. Both take one all-reduce a measured step, and a second one for largest entries if "linf" is measured on
shards. Rank 0 writes the trace.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError
from lsmooth.join import Join
from lsmooth.parallel.averaging import Averager
from lsmooth.parallel.refusals import check_ddp, check_shards, refuse_unknown
from lsmooth.parallel.shards import is_sharded


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside of torch.compile's and DistributedDataParallel's wrappers."""
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
        model: The model as the training loop calls it, possibly wrapped.
        names: Names of the measured parameters.
        parameters: The measured parameters.

    Raises:
        InvalidArgumentError: The model is parallel in a way that cannot be measured.

    Attributes:
        rank: Rank of this process; 0 for a single process.
        size: Number of processes.
        sharded: Whether the ranks hold shards of the parameters.
        averager: Averages gradients over ranks; None without DistributedDataParallel.
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
        self.averager = None if self._ddp is None else Averager(self._ddp)
        if self._ddp is not None:
            check_ddp(self._ddp, self.size)
        self._indices: Tensor | None = None
        self._squared: Tensor | None = None
        self._factors: Tensor | None = None
        self._maxima: Tensor | None = None

    @property
    def alone(self) -> bool:
        """Whether there is only one process."""
        return self.size == 1

    def agree(self, open_file: Callable[[], Any], **facts: Any) -> Any:
        """Open the trace on rank 0; return the result of `open_file` there and None elsewhere, or raise on every rank.

        Args:
            open_file: Opens the trace; called on rank 0.
            facts: Settings that must be equal on all ranks.

        Raises:
            InvalidArgumentError: The ranks' `facts` differ.
            Exception: The error of rank 0, usually a TraceError.
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
                # The other ranks wait for the outcome.
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
        """Compute, once, how rows are joined.

        Args:
            places: Slice of a row that holds each quantity.
            joins: How each quantity is joined; a sequence has one join for each tensor, and is repeated.
            device: Device of rows.

        Raises:
            InvalidArgumentError: A quantity is not determined by its values on shards.
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
        """Join the ranks' rows, (width,), in place, and return the row; one all-reduce, and a second one for maxima."""
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

    def equal_part(self, values: Tensor) -> Tensor:
        """Return this rank's part of sums over shards, (n,): one all-reduce, after which all ranks' parts are equal.

        `join` of the parts gives the sums. A norm over several such sums may be taken of the parts, and joined too.
        """
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def agreed(self, values: Tensor, joins: Sequence[Join]) -> list[float]:
        """Join numbers over ranks, and return them on the host, the same on every rank; waits for one all-reduce.

        Args:
            values: This rank's numbers, (n,).
            joins: How each is joined: SUM over shards, or MEAN.
        """
        if self.alone:
            return values.tolist()
        torch.distributed.all_reduce(values)
        shares = [self._copies if self.sharded and join == Join.SUM else self.size for join in joins]
        return [value / share for value, share in zip(values.tolist(), shares, strict=True)]

    def plain_gradients(self) -> bool:
        """Say whether nothing but autograd uses `.grad`: then it may be taken away during backward, and read later.

        Wrappers average gradients on their own schedule. There, `.grad` is complete only at the end of backward, and
        the next backward pass may write to the same memory.
        """
        return self.alone and not self.sharded and self._ddp is None

    def whole_gradients_arrive(self) -> bool:
        """Say whether `.grad` may be taken away when a hook on it runs: it is autograd's alone, or that of a shard.

        Of a model in DistributedDataParallel it may only where `averager` averages in its place. Under `fully_shard`,
        hooks run when a shard's gradient has been averaged, on the stream on which that was done; the end of backward
        waits for it. Versions of PyTorch that run none leave all of them to the end.
        """
        return self._ddp is None and (self.alone or self.sharded)

    def shares_gradient_memory(self) -> bool:
        """Say whether the next backward pass writes into the memory of the last one's `.grad`."""
        return self._ddp is not None and self._ddp.gradient_as_bucket_view

    def context(self) -> Callable[[], AbstractContextManager[None]]:
        """Return a maker of contexts in which backward averages gradients over ranks if it does so now."""
        if self.averager is None:
            return contextlib.nullcontext
        return self.averager.synchronisation()


def _ddp_of(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    inner: Any = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            return inner
        inner = getattr(inner, "_orig_mod", None)
    return None


class SilentWriter:
    """Takes the writer's place on ranks other than 0, and does nothing.

    Args:
        failure: Why rank 0 does not write either; None if it does.
    """

    def __init__(self, failure: str | None) -> None:
        self.failure = failure

    def put(self, block: Any, size: int = 0, steps: Sequence[int] = ()) -> None:
        """Ignore a block."""

    def problems(self) -> list[str]:
        """Return an empty list."""
        return []

    def wait(self) -> None:
        """Return at once."""

    def close(self, next_step: int | None = None, *, wait: bool = True) -> None:
        """Return at once."""
