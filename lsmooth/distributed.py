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
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError
from lsmooth.join import Join

if TYPE_CHECKING:
    from lsmooth.handover import RowLayout

# Where torch keeps DTensor: the second, before PyTorch 2.5.
_DTENSOR_HOMES = ("torch.distributed.tensor", "torch.distributed._tensor")


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: its shard of a DTensor, any other tensor as it is."""
    return tensor._local_tensor if _is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def _is_sharded(tensor: Tensor) -> bool:
    # Where the module was never imported there is none, and importing it takes its time.
    for home in _DTENSOR_HOMES:
        kind = getattr(sys.modules.get(home), "DTensor", None)
        if kind is not None:
            return isinstance(tensor, kind)
    return False


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
        self._refuse_unknown(model)
        here = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.size = torch.distributed.get_world_size() if here else 1
        self.rank = torch.distributed.get_rank() if here else 0
        self._ddp = _ddp_of(model)
        self.sharded = any(_is_sharded(p) for p in parameters)
        self._copies = 1
        if self.sharded:
            self._copies = self._check_shards(model, names, parameters)
        elif self.size > 1 and self._ddp is None:
            raise InvalidArgumentError(
                f"torch.distributed runs {self.size} ranks, but the model is neither wrapped in "
                "DistributedDataParallel nor sharded by fully_shard, so that its gradient is this rank's alone; give "
                "the recorder the wrapped model that the loop calls."
            )
        if self._ddp is not None:
            self._check_ddp(self._ddp)
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

    def prepare(self, layout: RowLayout, device: torch.device) -> None:
        """Work out, once, how rows are joined.

        Raises:
            InvalidArgumentError: A quantity cannot be told from its values on shards.
        """
        if self.alone:
            return
        indices: list[int] = []
        maxima: list[int] = []
        squared: list[bool] = []
        factors: list[float] = []
        for name, place in layout.places.items():
            share = 1.0 / self._copies
            join = layout.joins[name]
            if join == Join.MEAN:
                share = 1.0 / self.size
            elif not self.sharded or join == Join.SAME:
                continue
            elif join == Join.MAX:
                maxima += range(place.start, place.stop)
                continue
            elif join == Join.UNKNOWN:
                raise InvalidArgumentError(
                    f"{name} cannot be joined from the shards of fully_shard; leave it out, or train with "
                    "DistributedDataParallel."
                )
            places = range(place.start, place.stop)
            indices += places
            squared += [join == Join.NORM] * len(places)
            factors += [share] * len(places)
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

    def held(self, parameter: Tensor, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Say which elements of a tensor this rank holds.

        Args:
            parameter: The tensor, sharded or not.
            indices: Positions in the flattened whole tensor, (k,).

        Returns:
            Those of 0 … k-1 whose element is here, and their positions in the flattened local tensor.
        """
        if not _is_sharded(parameter):
            return np.arange(len(indices)), indices
        ranges = _local_ranges(parameter)
        places = np.unravel_index(indices, tuple(parameter.shape))
        here = np.ones(len(indices), dtype=bool)
        for place, (start, length) in zip(places, ranges, strict=True):
            here &= (place >= start) & (place < start + length)
        if not here.any():
            return np.flatnonzero(here), np.zeros(0, dtype=np.int64)
        inside = tuple(place[here] - start for place, (start, _) in zip(places, ranges, strict=True))
        flat = np.ravel_multi_index(inside, tuple(length for _, length in ranges))
        return np.flatnonzero(here), np.asarray(flat, dtype=np.int64)

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

    # --- what is refused ---

    @staticmethod
    def _refuse_unknown(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.DataParallel):
                raise InvalidArgumentError(
                    "DataParallel is not measured; use DistributedDataParallel, one process a GPU."
                )
            kind = type(module).__name__
            if kind == "FullyShardedDataParallel":
                raise InvalidArgumentError(
                    "FullyShardedDataParallel (FSDP1) is not measured, since its flat parameters are not the model's; "
                    "use torch.distributed.fsdp.fully_shard (FSDP2)."
                )
            if kind == "DeepSpeedEngine":
                raise InvalidArgumentError(
                    "DeepSpeed is not measured, since its engine owns gradients and steps; use DistributedDataParallel "
                    "or torch.distributed.fsdp.fully_shard."
                )

    def _check_ddp(self, ddp: nn.parallel.DistributedDataParallel) -> None:
        if torch.distributed.get_world_size(ddp.process_group) != self.size:
            raise InvalidArgumentError(
                "DistributedDataParallel averages over some of the ranks only; a recorder measures one run over all of "
                "them: use the default process group."
            )
        for hook, state in getattr(ddp, "_comm_hooks", []):
            if not getattr(hook, "__module__", "").endswith("ddp_comm_hooks.default_hooks"):
                raise InvalidArgumentError(
                    f"DistributedDataParallel has the communication hook {getattr(hook, '__name__', hook)}, whose "
                    f"state ({type(state).__name__}) measuring would change; take it off, or use one of torch's "
                    "default_hooks."
                )

    def _check_shards(self, model: nn.Module, names: Sequence[str], parameters: Sequence[Tensor]) -> int:
        """Return how many ranks hold a copy of each shard."""
        import torch.distributed.fsdp

        if not hasattr(torch.distributed.fsdp, "fully_shard"):
            raise InvalidArgumentError(
                f"Sharded parameters are measured from PyTorch 2.6 on, where fully_shard became public, and this is "
                f"{torch.__version__}; train with DistributedDataParallel, or update PyTorch."
            )
        from torch.distributed.tensor import Replicate, Shard

        fully = any(kind.__name__ == "FSDPModule" for module in model.modules() for kind in type(module).__mro__)
        copies: set[int] = set()
        for name, parameter in zip(names, parameters, strict=True):
            if not _is_sharded(parameter):
                raise InvalidArgumentError(
                    f"{name} is not sharded while other parameters are, so that its gradient is not averaged over "
                    "ranks; call fully_shard on the whole model too."
                )
            mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
            # What fully_shard makes: shards, or copies of shards. Under tensor parallelism a layout does not say
            # whether the ranks' gradients are to be joined.
            if not fully or [type(item) for item in placements] not in ([Shard], [Replicate, Shard]):
                raise InvalidArgumentError(
                    f"{name} is laid out as {placements}, which fully_shard alone does not do; tensor parallelism is "
                    "not measured."
                )
            if mesh.size() != self.size:
                raise InvalidArgumentError(
                    f"{name} is sharded over {mesh.size()} of {self.size} ranks; a recorder measures one model over "
                    "all of them."
                )
            if tuple(length for _, length in _local_ranges(parameter)) != tuple(local(parameter).shape):
                raise InvalidArgumentError(f"{name} is sharded unevenly in a way that a recorder does not follow.")
            copies.add(
                math.prod(
                    mesh.size(dim) for dim, placement in enumerate(placements) if isinstance(placement, Replicate)
                )
            )
        if len(copies) > 1:
            raise InvalidArgumentError(
                "Some parameters are replicated on more ranks than others; shard all of them over the same mesh."
            )
        return copies.pop()


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


def _local_ranges(parameter: Any) -> list[tuple[int, int]]:
    """Return start and length, along each dimension, of the part of a sharded tensor that this rank holds."""
    ranges = [(0, int(length)) for length in parameter.shape]
    for dim, placement in enumerate(parameter.placements):
        if placement.is_shard():
            # Shards are cut as torch.chunk cuts: of equal length but the last ones, which may be short or empty.
            start, length = ranges[placement.dim]
            piece = -(-length // parameter.device_mesh.size(dim))
            begin = min(parameter.device_mesh.get_local_rank(dim) * piece, length)
            ranges[placement.dim] = (start + begin, min(piece, length - begin))
    return ranges


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

    def close(self, next_step: int | None = None) -> None:
        """Return at once."""
