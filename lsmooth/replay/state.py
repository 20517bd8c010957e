"""Captures and restores what an evaluation reads besides parameters: random state, modules, objects, contexts."""

from __future__ import annotations

import contextlib
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsmooth.replay.contents import SMALL_BYTES, TensorState, contents_put_back, differs, overwrite
from lsmooth.replay.contexts import ContextState
from lsmooth.replay.objects import ObjectState, joined
from lsmooth.replay.reach import Generator, reached


@dataclass(frozen=True)
class RandomState:
    """The state of every random number generator that a closure may draw from.

    These are PyTorch's generators on the CPU and on each device in use, NumPy's global one, that of `random`, and the
    generators that are given.
    """

    cpu: Tensor
    devices: tuple[tuple[str, int, Tensor], ...]
    numpy: Any
    python: Any
    others: tuple[tuple[Generator, Any], ...]

    @classmethod
    def capture(cls, *generators: Generator) -> RandomState:
        """Return the present state, including that of `generators`."""
        devices: list[tuple[str, int, Tensor]] = []
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            devices += [("cuda", i, torch.cuda.get_rng_state(i)) for i in range(torch.cuda.device_count())]
        if torch.backends.mps.is_available():
            devices.append(("mps", 0, torch.mps.get_rng_state()))
        others = tuple((generator, _state_of(generator)) for generator in generators)
        return cls(torch.get_rng_state(), tuple(devices), np.random.get_state(), random.getstate(), others)  # noqa: NPY002

    @classmethod
    def seeded(cls, seed: int, *generators: Generator) -> RandomState:
        """Return the state that seeding torch, NumPy and `random` with `seed` makes, without changing any generator."""
        now = cls.capture()
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            return cls.capture(*generators)
        finally:
            now.restore()

    def others_hold(self) -> bool:
        """Say whether the given generators, which `seeded` does not seed, are still in this state."""
        return not self.others_changed()

    def others_changed(self) -> list[Generator]:
        """Return those of the given generators that are no longer in this state."""
        return [generator for generator, state in self.others if not _same_state(_state_of(generator), state)]

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


def _same_state(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    # States are dicts and tuples of numbers and arrays, which `==` does not compare.
    return pickle.dumps(one) == pickle.dumps(other)


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


# A buffer, a copy of its contents (None where dropped), and its version counter when it was captured.
BufferContent = tuple[Tensor, Tensor | None, int]


@dataclass(frozen=True)
class ModuleState:
    """Buffers, training flags and `requires_grad` flags of models.

    Attributes:
        models: The models.
        buffers: The dict of buffers of each module.
        contents: Contents of the buffers.
        training: The training flag of each module.
        requires_grad: The `requires_grad` flag of each parameter.
    """

    models: tuple[nn.Module, ...]
    buffers: tuple[tuple[nn.Module, dict[str, Tensor | None]], ...]
    contents: tuple[BufferContent, ...]
    training: tuple[tuple[nn.Module, bool], ...]
    requires_grad: tuple[tuple[Tensor, bool], ...]

    @classmethod
    def capture(cls, *models: nn.Module) -> ModuleState:
        """Return a copy of the present state."""
        modules = list(dict.fromkeys(module for model in models for module in model.modules()))
        buffers = tuple((module, dict(module._buffers)) for module in modules)
        held = dict.fromkeys(buffer for _, named in buffers for buffer in named.values() if buffer is not None)
        contents = tuple(
            # Inference tensors cannot change, and have no version counter.
            (buffer, buffer.detach().clone(), buffer._version)
            for buffer in held
            if not buffer.is_inference()
        )
        training = tuple((module, module.training) for module in modules)
        parameters = dict.fromkeys(parameter for model in models for parameter in model.parameters())
        requires_grad = tuple((parameter, parameter.requires_grad) for parameter in parameters)
        return cls(models, buffers, contents, training, requires_grad)

    def without_unchanged(self) -> ModuleState:
        """Return the same state without copies of large buffers that nothing has written to since."""
        kept = tuple(
            (buffer, None, version)
            if copy is not None
            and buffer._version == version
            and buffer.shape == copy.shape
            and buffer.numel() * buffer.element_size() > SMALL_BYTES
            else (buffer, copy, version)
            for buffer, copy, version in self.contents
        )
        return replace(self, contents=kept)

    def holds(self) -> bool:
        """Say whether buffers and flags are unchanged; off the CPU, buffers are judged by version counters alone."""
        return (
            all(_same_buffers(module._buffers, named) for module, named in self.buffers)
            and all(
                not differs(buffer, copy) if copy is not None and buffer.device.type == "cpu" else now == version
                for buffer, copy, version in self.contents
                for now in (buffer._version,)
            )
            and all(module.training is flag for module, flag in self.training)
            and all(parameter.requires_grad is flag for parameter, flag in self.requires_grad)
        )

    def restore(self) -> None:
        """Restore the buffers (the same tensors with the same contents) and the flags."""
        for module, named in self.buffers:
            _put_buffers(module._buffers, named)
        for buffer, copy, _ in self.contents:
            if copy is not None:
                overwrite(buffer, copy)
        for module, flag in self.training:
            if module.training is not flag:
                module.training = flag
        for parameter, flag in self.requires_grad:
            if parameter.requires_grad is not flag:
                parameter.requires_grad_(flag)


def _same_buffers(now: Any, then: Mapping[str, Tensor | None]) -> bool:
    """Say whether a module's table of buffers, a scripted module's too, holds the same tensors as it did."""
    held = dict(now)
    return held.keys() == then.keys() and all(held[name] is buffer for name, buffer in then.items())


def _put_buffers(now: Any, then: Mapping[str, Tensor | None]) -> None:
    """Put the same tensors into a module's table of buffers; a scripted module's has no other ways than this."""
    held = dict(now)
    if held.keys() != then.keys():
        now.clear()
        now.update(then)
        return
    for name, buffer in then.items():
        if held[name] is not buffer:
            now[name] = buffer


@dataclass(frozen=True)
class Surroundings:
    """The state in which a closure was called, and in which it must be called again.

    Attributes:
        random: Random state before the forward pass.
        modules: Buffers and flags of reachable models before it.
        contexts: Contexts in force around it.
        objects: What reachable objects and containers held before it.
        tensors: Contents of reachable tensors before it.
        leaves: Reachable tensors, besides those of `modules`, that gradients may be accumulated into.
        context: Makes a context for forward and backward, which decides whether ranks average their gradients.
        starts: The closures and arguments from which all of this was reached.
    """

    random: RandomState
    modules: ModuleState
    contexts: ContextState
    objects: ObjectState
    tensors: TensorState
    leaves: tuple[Tensor, ...] = ()
    context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    starts: tuple[Any, ...] = ()

    @classmethod
    def capture(
        cls,
        *starts: Any,
        device_type: str,
        trained: Sequence[Tensor] | None = None,
        context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        seed: int | None = None,
    ) -> Surroundings:
        """Return the present state of everything that closures and arguments reach.

        Args:
            *starts: The closures and arguments.
            device_type: Type of the device that the loss is computed on, such as "cuda".
            trained: Parameters that others put back; None for all that require a gradient.
            context: Makes a context for forward and backward.
            seed: Seeds the random state, in place of the present one; None for the present one.
        """
        contexts = ContextState.capture(device_type)
        starts = (*starts, *contexts.of_the_user())
        found = reached(*starts)
        return cls(
            RandomState.capture(*found.generators) if seed is None else RandomState.seeded(seed, *found.generators),
            ModuleState.capture(*found.models),
            contexts,
            ObjectState.capture(found.holders),
            TensorState.capture(found.tensors, found.models, trained),
            tuple(tensor for tensor in found.tensors if tensor.requires_grad and tensor.is_leaf),
            context,
            starts,
        )

    def without_unchanged(self) -> Surroundings:
        """Return the same, after the forward pass, without copies of large tensors that it has not written to."""
        return replace(self, modules=self.modules.without_unchanged(), tensors=self.tensors.after_forward())

    def holds(self) -> bool:
        """Say whether an evaluation now would find this state, apart from parameters and seeded generators."""
        return (
            self.random.others_hold()
            and self.modules.holds()
            and self.contexts.holds()
            and self.objects.holds()
            and self.tensors.holds()
        )

    def restore(self) -> None:
        """Restore everything but contexts.

        Raises:
            InputChangedError: An input was overwritten, and there is no copy of it.
        """
        self.random.restore()
        self.objects.restore()
        self.modules.restore()
        self.tensors.restore()


@contextlib.contextmanager
def put_back(states: Sequence[Surroundings]) -> Iterator[list[nn.Module]]:
    """Run a block that evaluates losses in any of these surroundings; then put the present state back.

    Yields:
        The models whose state is put back.
    """
    models = list(dict.fromkeys(model for state in states for model in state.modules.models))
    random_state = RandomState.capture(*{g: None for state in states for g, _ in state.random.others})
    modules = ModuleState.capture(*models)
    objects = joined([state.objects for state in states]).now()
    contexts = ContextState.capture("cpu")
    with contents_put_back([state.tensors for state in states]):
        try:
            yield models
        finally:
            contexts.set()
            objects.restore()
            modules.restore()
            random_state.restore()
