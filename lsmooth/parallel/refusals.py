"""Refuses kinds of parallel training that are not measured; each error says what to use instead."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError
from lsmooth.parallel.shards import is_sharded, local, local_ranges


def refuse_unknown(model: nn.Module) -> None:
    """Refuse a model with a wrapper that owns gradients or parameters.

    Raises:
        InvalidArgumentError: The model has such a wrapper.
    """
    for module in model.modules():
        if isinstance(module, nn.DataParallel):
            raise InvalidArgumentError("DataParallel is not measured; use DistributedDataParallel, one process a GPU.")
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


def check_ddp(ddp: nn.parallel.DistributedDataParallel, size: int) -> None:
    """Check that DistributedDataParallel takes a plain average over all of `size` ranks.

    Raises:
        InvalidArgumentError: It does not.
    """
    if torch.distributed.get_world_size(ddp.process_group) != size:
        raise InvalidArgumentError(
            "DistributedDataParallel averages over some of the ranks only, and a recorder measures one run over all "
            "ranks; use the default process group."
        )
    for hook, state in getattr(ddp, "_comm_hooks", []):
        if not getattr(hook, "__module__", "").endswith("ddp_comm_hooks.default_hooks"):
            raise InvalidArgumentError(
                f"DistributedDataParallel has the communication hook {getattr(hook, '__name__', hook)}, whose "
                f"state ({type(state).__name__}) measuring would change; remove it, or use one of torch's "
                "default_hooks."
            )


def check_shards(model: nn.Module, names: Sequence[str], parameters: Sequence[Tensor], size: int) -> int:
    """Return the number of ranks, of `size`, that hold a copy of each shard.

    Raises:
        InvalidArgumentError: Parameters are not sharded as `fully_shard` does over all ranks.
    """
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
        if not is_sharded(parameter):
            raise InvalidArgumentError(
                f"{name} is not sharded while other parameters are, so that its gradient is not averaged over "
                "ranks; call fully_shard on the whole model too."
            )
        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        # The layouts that fully_shard makes. The layout of tensor parallelism does not say whether the gradients of
        # the ranks must be joined.
        if not fully or [type(item) for item in placements] not in ([Shard], [Replicate, Shard]):
            raise InvalidArgumentError(
                f"{name} has the layout {placements}, which fully_shard alone does not make; tensor parallelism is not "
                "measured, use fully_shard without it."
            )
        if mesh.size() != size:
            raise InvalidArgumentError(
                f"{name} is sharded over {mesh.size()} of {size} ranks; a recorder measures one model over all ranks; "
                "shard it over all of them."
            )
        if tuple(length for _, length in local_ranges(parameter)) != tuple(local(parameter).shape):
            raise InvalidArgumentError(f"{name} is sharded unevenly, as fully_shard never does it; use fully_shard.")
        copies.add(
            math.prod(mesh.size(dim) for dim, placement in enumerate(placements) if isinstance(placement, Replicate))
        )
    if len(copies) > 1:
        raise InvalidArgumentError(
            "Some parameters are replicated on more ranks than others; shard all of them over the same mesh."
        )
    return copies.pop()
