"""What tensors contain that an evaluation reads besides parameters and buffers: inputs, frozen weights, sums."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from lsmooth.errors import InputChangedError

# A forward pass may write to what it reads: before it, so much is copied in all, the smallest tensors first.
_COPIED_BYTES = 1 << 26
# Copies of tensors that the forward pass has written to stay until the step is over, and those of small ones.
SMALL_BYTES = 1 << 16

# What changes when a tensor is written to, or gets other memory.
Imprint = tuple[int, int]


@dataclass(frozen=True)
class Content:
    """A tensor, and what it contained at one moment.

    Attributes:
        tensor: The tensor.
        copy: What it contained; None where there is no copy.
        imprint: Its imprint then.
        checked: Whether it must not change, where there is no copy, before the step is over.
    """

    tensor: Tensor
    copy: Tensor | None
    imprint: Imprint
    checked: bool = True


@dataclass(frozen=True)
class TensorState:
    """What tensors contain that are reached from a closure: its inputs, frozen parameters, attributes of models.

    Parameters that are trained and buffers are put back by others.
    """

    contents: tuple[Content, ...] = ()

    @classmethod
    def capture(cls, tensors: Iterable[Tensor], models: Iterable[nn.Module]) -> TensorState:
        """Return what `tensors`, and frozen parameters of `models`, contain now."""
        registered: dict[int, Tensor] = {}
        frozen: dict[int, Tensor] = {}
        for module in dict.fromkeys(module for model in models for module in model.modules()):
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    registered[id(tensor)] = tensor
            frozen |= {id(p): p for p in module._parameters.values() if p is not None and not p.requires_grad}
        free = [tensor for tensor in tensors if id(tensor) not in registered]
        # Other names of memory that a step changes, or that is put back already, contain what they should.
        known = {memory_of(t) for t in (*registered.values(), *(t for t in free if t.requires_grad))}
        free = [tensor for tensor in free if not tensor.requires_grad and memory_of(tensor) not in known]
        return cls(tuple(_copied([(t, True) for t in free] + [(t, False) for t in frozen.values()])))

    def after_forward(self) -> TensorState:
        """Return the same, without copies of large tensors that nothing has written to since."""
        kept: list[Content] = []
        for content in self.contents:
            tensor, copy = content.tensor, content.copy
            now = imprint(tensor)
            written = now != content.imprint or (copy is not None and differs(tensor, copy))
            if copy is None and written:
                # It contained something else when it was read, of which there is no copy.
                kept.append(Content(tensor, None, _NEVER))
            elif copy is not None and (written or _bytes_of(tensor) <= SMALL_BYTES):
                kept.append(Content(tensor, copy, content.imprint))
            elif content.checked:
                kept.append(Content(tensor, None, now))
        return TensorState(tuple(kept))

    def holds(self) -> bool:
        """Say whether the tensors contain what they did; off the CPU, as far as their version counters tell."""
        return all(
            differs(content.tensor, content.copy) is False
            if content.copy is not None and content.tensor.device.type == "cpu"
            else imprint(content.tensor) == content.imprint
            for content in self.contents
        )

    def restore(self) -> None:
        """Write to the tensors what they contained, where that is known.

        Raises:
            InputChangedError: A tensor without a copy has changed since.
        """
        for content in self.contents:
            if content.copy is not None:
                if imprint(content.tensor) != content.imprint or differs(content.tensor, content.copy):
                    overwrite(content.tensor, content.copy)
            elif imprint(content.tensor) != content.imprint:
                raise InputChangedError(
                    f"An input of the loss, of shape {tuple(content.tensor.shape)}, was overwritten in place before "
                    "the measured step was over, so that the loss cannot be evaluated again; give each batch tensors "
                    "of its own, and let the loss leave its inputs as they are."
                )


@contextlib.contextmanager
def contents_put_back(states: Sequence[TensorState]) -> Iterator[None]:
    """Run a block that may restore any of these states; put all contents back at the end, version counters included."""
    tensors = {id(c.tensor): c.tensor for state in states for c in state.contents if c.copy is not None}
    kept = [(tensor, tensor.detach().clone(), imprint(tensor)) for tensor in tensors.values()]
    versions = [_unsafe_preserve_version_counter(tensor) for tensor in tensors.values()]
    try:
        yield
    finally:
        for tensor, copy, then in kept:
            if imprint(tensor) != then or differs(tensor, copy):
                overwrite(tensor, copy)
        for version in versions:
            version.__exit__(None, None, None)


@torch.no_grad()
def overwrite(tensor: Tensor, contents: Tensor) -> None:
    """Give a tensor other contents; graphs that have saved it go by its version counter, which stays as it is."""
    if tensor.shape != contents.shape:
        tensor.data = contents.clone()
        return
    with _unsafe_preserve_version_counter(tensor):
        tensor.copy_(contents)


def imprint(tensor: Tensor) -> Imprint:
    """Return what changes when a tensor is written to, or gets other memory."""
    return tensor._version, _address_of(tensor)


_NEVER: Imprint = (-1, -1)


def differs(tensor: Tensor, copy: Tensor) -> bool:
    """Say whether a tensor's contents are seen to differ from a copy, where that can be seen without waiting.

    Writes through `.data` and by other libraries go past the version counter.
    """
    if tensor.shape != copy.shape:
        return True
    if tensor.device.type != "cpu":
        return False
    # As whole numbers, since NaN is not equal to itself.
    a, b = (part.detach().view(_WHOLE[part.element_size()]) for part in (tensor, copy))
    return not np.array_equal(a.numpy(), b.numpy())


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def memory_of(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor, and views of it, lie in; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _address_of(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not tensor.is_inference()
        and tensor.numel() > 0
    )


def _copied(tensors: Sequence[tuple[Tensor, bool]]) -> Iterator[Content]:
    """Yield what tensors contain, with copies of as many as may be copied."""
    left = _COPIED_BYTES
    for tensor, checked in sorted(tensors, key=lambda item: _bytes_of(item[0])):
        if tensor.is_inference():
            # It cannot change, and keeps no count of its versions.
            continue
        left -= _bytes_of(tensor)
        copy: Any = tensor.detach().clone() if left >= 0 and _is_plain(tensor) else None
        yield Content(tensor, copy, imprint(tensor), checked)
