"""Contents of the tensors that an evaluation reads besides trained parameters and buffers: inputs, frozen weights."""

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

# Before a forward pass, which may write to what it reads, at most this many bytes are copied, the smallest tensors
# first.
_COPIED_BYTES = 1 << 26
# After the forward pass, copies of tensors up to this size are kept, and of larger ones that it has written to.
SMALL_BYTES = 1 << 16

# Version counter and address of a tensor: one of them changes when it is written to, or gets other memory.
Imprint = tuple[int, int]


@dataclass(frozen=True)
class Content:
    """A tensor, and what it contained at one moment.

    Attributes:
        tensor: The tensor.
        copy: A copy of its contents; None for none.
        imprint: Its imprint then.
        checked: Whether a tensor without a copy must not change before the step is over.
    """

    tensor: Tensor
    copy: Tensor | None
    imprint: Imprint
    checked: bool = True


@dataclass(frozen=True)
class TensorState:
    """Contents of the tensors that a closure reaches: its inputs, frozen parameters, attributes of models.

    Trained parameters are restored by `Segment`, and buffers by `ModuleState`. The parameters of another network, such
    as a teacher that follows the model, are restored here, though they require a gradient.
    """

    contents: tuple[Content, ...] = ()

    @classmethod
    def capture(
        cls, tensors: Iterable[Tensor], models: Iterable[nn.Module], trained: Iterable[Tensor] | None = None
    ) -> TensorState:
        """Return the present contents of `tensors`, and of parameters of `models` that others do not restore.

        Args:
            tensors: Inputs and attributes.
            models: Of these, frozen parameters are captured, and those that are not `trained`.
            trained: Parameters that others restore; None for all that require a gradient.
        """
        registered: dict[int, Tensor] = {}
        others: dict[int, Tensor] = {}
        moved = None if trained is None else {id(parameter) for parameter in trained}
        for module in dict.fromkeys(module for model in models for module in model.modules()):
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    registered[id(tensor)] = tensor
            for parameter in module._parameters.values():
                if parameter is None or (parameter.requires_grad and (moved is None or id(parameter) in moved)):
                    continue
                others[id(parameter)] = parameter
        free = [tensor for tensor in tensors if id(tensor) not in registered]
        # Views of parameters and buffers follow these, and are not captured themselves.
        known = {memory_of(t) for t in (*registered.values(), *(t for t in free if t.requires_grad))}
        free = [tensor for tensor in free if not tensor.requires_grad and memory_of(tensor) not in known]
        return cls(tuple(_copied([(t, True) for t in free] + [(t, False) for t in others.values()])))

    def after_forward(self) -> TensorState:
        """Return the same, after the forward pass, without copies of large tensors that it has not written to."""
        kept: list[Content] = []
        for content in self.contents:
            tensor, copy = content.tensor, content.copy
            now = imprint(tensor)
            written = now != content.imprint or (copy is not None and differs(tensor, copy))
            if copy is None and written:
                # The forward pass overwrote it, and there is no copy: `restore` must raise.
                kept.append(Content(tensor, None, _NEVER))
            elif copy is not None and (written or _bytes_of(tensor) <= SMALL_BYTES):
                kept.append(Content(tensor, copy, content.imprint))
            elif content.checked:
                kept.append(Content(tensor, None, now))
        return TensorState(tuple(kept))

    def holds(self) -> bool:
        """Say whether the contents are unchanged; off the CPU, they are judged by version counters alone."""
        return all(
            differs(content.tensor, content.copy) is False
            if content.copy is not None and content.tensor.device.type == "cpu"
            else imprint(content.tensor) == content.imprint
            for content in self.contents
        )

    def restore(self) -> None:
        """Write the contents back to the tensors that have a copy.

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
    """Run a block that may restore any of these states; then put contents and version counters back."""
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
    """Overwrite a tensor, but keep its version counter, by which graphs notice that a saved tensor has changed."""
    if tensor.shape != contents.shape:
        tensor.data = contents.clone()
        return
    with _unsafe_preserve_version_counter(tensor):
        tensor.copy_(contents)


def imprint(tensor: Tensor) -> Imprint:
    """Return a tensor's version counter and address; see `Imprint`."""
    return tensor._version, _address_of(tensor)


_NEVER: Imprint = (-1, -1)


# Where the loop compiles a whole training step, the compiler is not to trace this: it has no contents to compare.
@getattr(torch, "_disable_dynamo", lambda function: function)  # type: ignore[untyped-decorator]
def differs(tensor: Tensor, copy: Tensor) -> bool:
    """Say whether a tensor differs from a copy of it; False off the CPU, where comparing would wait for the device.

    It finds writes through `.data` and by other libraries, which go past the version counter.
    """
    if tensor.shape != copy.shape:
        return True
    if tensor.device.type != "cpu":
        return False
    # Compared as integers, since NaN is not equal to itself.
    a, b = (part.detach().view(_WHOLE[part.element_size()]) for part in (tensor, copy))
    # `Tensor.numpy` would forbid the loop to resize the memory for good.
    return not np.array_equal(np.from_dlpack(a), np.from_dlpack(b))


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def memory_of(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, which its views share; 0 if it has none."""
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
        # Views that read their memory conjugated or negated cannot be read as whole numbers.
        and not (tensor.is_conj() or tensor.is_neg())
        and tensor.numel() > 0
    )


def _copied(tensors: Sequence[tuple[Tensor, bool]]) -> Iterator[Content]:
    """Yield the contents of tensors, with copies of the smallest ones up to `_COPIED_BYTES` in all."""
    left = _COPIED_BYTES
    for tensor, checked in sorted(tensors, key=lambda item: _bytes_of(item[0])):
        if tensor.is_inference():
            # Inference tensors cannot change, and have no version counter.
            continue
        left -= _bytes_of(tensor)
        copy: Any = tensor.detach().clone() if left >= 0 and _is_plain(tensor) else None
        yield Content(tensor, copy, imprint(tensor), checked)
