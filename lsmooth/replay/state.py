"""What an evaluation reads besides parameters: random state, buffers, flags, autocast; captured, and put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsmooth.replay.closures import Generator, reached

# Buffers that a forward changed are copied; of the others, only small ones, in case a change went past the version
# counter (writes through `.data` do).
_SMALL_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True)
class RandomState:
    """The state of every random number generator that a closure may draw from.

    PyTorch's on the CPU and on each device in use, numpy's global one, that of `random`, and given ones.
    """

    cpu: Tensor
    devices: tuple[tuple[str, int, Tensor], ...]
    numpy: Any
    python: Any
    others: tuple[tuple[Generator, Any], ...]

    @classmethod
    def capture(cls, *generators: Generator) -> RandomState:
        """Return the present state, that of `generators` included."""
        devices: list[tuple[str, int, Tensor]] = []
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            devices += [("cuda", i, torch.cuda.get_rng_state(i)) for i in range(torch.cuda.device_count())]
        if torch.backends.mps.is_available():
            devices.append(("mps", 0, torch.mps.get_rng_state()))
        others = tuple((generator, _state_of(generator)) for generator in generators)
        return cls(torch.get_rng_state(), tuple(devices), np.random.get_state(), random.getstate(), others)  # noqa: NPY002

    @classmethod
    def seeded(cls, seed: int, *generators: Generator) -> RandomState:
        """Return the state after torch, numpy and `random` are seeded with `seed`, leaving all as they are."""
        now = cls.capture()
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            return cls.capture(*generators)
        finally:
            now.restore()

    def restore(self) -> None:
        """Put every generator back into this state."""
        torch.set_rng_state(self.cpu)
        for kind, index, state in self.devices:
            if kind == "cuda":
                torch.cuda.set_rng_state(state, index)
            else:
                torch.mps.set_rng_state(state)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)
        for generator, state in self.others:
            _set_state(generator, state)


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


@dataclass(frozen=True)
class ModuleState:
    """Buffers, training flags and frozen parameters of models: what an evaluation reads besides parameter values."""

    models: tuple[nn.Module, ...]
    buffers: tuple[tuple[nn.Module, str, Tensor, Tensor | None], ...]
    training: tuple[tuple[nn.Module, bool], ...]
    requires_grad: tuple[tuple[Tensor, bool], ...]
    versions: tuple[int, ...] = field(repr=False, default=())

    @classmethod
    def capture(cls, *models: nn.Module) -> ModuleState:
        """Return a copy of the present state."""
        buffers: list[tuple[nn.Module, str, Tensor, Tensor | None]] = []
        training: list[tuple[nn.Module, bool]] = []
        for module in dict.fromkeys(module for model in models for module in model.modules()):
            training.append((module, module.training))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    buffers.append((module, name, buffer, buffer.detach().clone()))
        parameters = dict.fromkeys(parameter for model in models for parameter in model.parameters())
        requires_grad = tuple((parameter, parameter.requires_grad) for parameter in parameters)
        versions = tuple(entry[2]._version for entry in buffers)
        return cls(models, tuple(buffers), tuple(training), requires_grad, versions)

    def without_unchanged(self) -> ModuleState:
        """Return the same state without the copies of large buffers that nothing has written to since."""
        kept = tuple(
            (module, name, buffer, None)
            if copy is not None
            and buffer._version == version
            and buffer.numel() * buffer.element_size() > _SMALL_BUFFER_BYTES
            else (module, name, buffer, copy)
            for (module, name, buffer, copy), version in zip(self.buffers, self.versions, strict=True)
        )
        return ModuleState(self.models, kept, self.training, self.requires_grad)

    def restore(self) -> None:
        """Put the buffers (the same tensors, with the same contents) and the flags back."""
        with torch.no_grad():
            for module, name, buffer, copy in self.buffers:
                if module._buffers.get(name) is not buffer:
                    module._buffers[name] = buffer
                if copy is not None:
                    buffer.copy_(copy)
        for module, flag in self.training:
            if module.training is not flag:
                module.training = flag
        for parameter, flag in self.requires_grad:
            if parameter.requires_grad is not flag:
                parameter.requires_grad_(flag)


@dataclass(frozen=True)
class AutocastState:
    """Which autocast contexts a closure was called under."""

    devices: tuple[tuple[str, bool, torch.dtype], ...]
    cache: bool

    @classmethod
    def capture(cls, device_type: str) -> AutocastState:
        """Return what is in force now for the CPU and for `device_type`."""
        kinds = [kind for kind in dict.fromkeys(("cpu", device_type)) if torch.amp.is_autocast_available(kind)]
        devices = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
        return cls(devices, torch.is_autocast_cache_enabled())

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Run a block under the same contexts, with no weights cast for other parameter values left in the cache."""
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self.devices:
                if enabled != torch.is_autocast_enabled(kind) or (enabled and dtype != torch.get_autocast_dtype(kind)):
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.cache))
            any_enabled = any(enabled for _, enabled, _ in self.devices)
            if any_enabled:
                torch.clear_autocast_cache()
            try:
                yield
            finally:
                if any_enabled:
                    torch.clear_autocast_cache()


@dataclass(frozen=True)
class Surroundings:
    """All that a closure finds when it is called, and that has to be there when it is called again.

    Attributes:
        random: Random state before the forward pass.
        modules: Buffers and training flags before it.
        autocast: Autocast contexts around it.
        context: Makes a context for forward and backward: whether ranks average their gradients.
    """

    random: RandomState
    modules: ModuleState
    autocast: AutocastState
    context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    @classmethod
    def capture(
        cls,
        *starts: Any,
        device_type: str,
        context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> Surroundings:
        """Return what is there now for closures and arguments, whatever models and generators they can reach."""
        models, generators = reached(*starts)
        return cls(
            RandomState.capture(*generators),
            ModuleState.capture(*models),
            AutocastState.capture(device_type),
            context,
        )

    def without_unchanged(self) -> Surroundings:
        """Return the same, without the copies of large buffers that nothing has written to since."""
        return replace(self, modules=self.modules.without_unchanged())

    def restore(self) -> None:
        """Put generators, buffers and flags back to where the first evaluation found them."""
        self.random.restore()
        self.modules.restore()
