"""Captures the contexts in force around a forward pass, and restores them when it is repeated."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import overrides
from torch.nn.utils import parametrize
from torch.utils import _python_dispatch as dispatch

# A setting of the process or the thread: a function that reads it, and one that sets it to what was read.
Setting = tuple[Callable[[], Any], Callable[[Any], Any]]


@dataclass(frozen=True)
class AutocastState:
    """The autocast contexts that a closure was called under.

    Attributes:
        devices: Device type, whether autocast was in force for it, and its dtype.
        cache: Whether cast weights were cached.
        refused: Whether autocast also stays off in contexts that the closure enters itself.
    """

    devices: tuple[tuple[str, bool, torch.dtype], ...]
    cache: bool
    refused: bool = False

    @classmethod
    def capture(cls, device_type: str) -> AutocastState:
        """Return the contexts in force now for the CPU and for `device_type`."""
        kinds = [kind for kind in dict.fromkeys(("cpu", device_type)) if torch.amp.is_autocast_available(kind)]
        devices = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
        return cls(devices, torch.is_autocast_cache_enabled())

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The dtypes that these contexts cast to."""
        return frozenset(dtype for _, enabled, dtype in self.devices if enabled)

    def none(self) -> AutocastState:
        """Return the state in which autocast is off, and stays off inside of closures."""
        return AutocastState(tuple((kind, False, dtype) for kind, _, dtype in self.devices), self.cache, refused=True)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Run a block under the same contexts; clear cached casts before and after, as parameter values differ."""
        with contextlib.ExitStack() as stack:
            if self.refused:
                stack.enter_context(_autocast_refused_process_wide())
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
class ContextState:
    """All contexts and settings of PyTorch and Python that may change what is computed, at one moment.

    These are autocast; grad mode; the default dtype and device; allowed attention kernels; deterministic and anomaly
    modes; flags of cuDNN and oneDNN; function and dispatch modes; hooks on saved tensors, which offload activations;
    whether parametrized weights are cached; and context variables. Random state is kept in `lsmooth.replay.state`.

    Attributes:
        autocast: Autocast contexts.
        grad: Whether autograd records operations.
        settings: Values of `_SETTINGS`.
        function_modes: Torch function modes, of which the default device is one; innermost last.
        dispatch_modes: Torch dispatch modes; innermost last.
        saved_tensors_hooks: Hooks on saved tensors, innermost first; None where this version of torch does not tell.
        variables: Context variables of Python, such as NumPy's handling of errors.
    """

    autocast: AutocastState
    grad: bool
    settings: tuple[Any, ...]
    function_modes: tuple[Any, ...]
    dispatch_modes: tuple[Any, ...]
    saved_tensors_hooks: tuple[Any, ...] | None
    variables: contextvars.Context

    @classmethod
    def capture(cls, device_type: str) -> ContextState:
        """Return the contexts in force now; autocast for the CPU and for `device_type`."""
        return cls(
            AutocastState.capture(device_type),
            torch.is_grad_enabled(),
            tuple(_value_of(read) for read, _ in _SETTINGS),
            tuple(overrides._get_current_function_mode_stack()),
            tuple(dispatch._get_current_dispatch_mode_stack()),
            _saved_tensors_hooks(),
            contextvars.copy_context(),
        )

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Run a block under these contexts, and put the present ones back afterwards."""
        now = ContextState.capture(self.autocast.devices[-1][0] if self.autocast.devices else "cpu")
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.callback(now.set)
            self.set()
            stack.enter_context(self.autocast.restored())
            stack.enter_context(_parametrizations_anew())
            yield

    def holds(self) -> bool:
        """Say whether the same contexts are in force now."""
        now = ContextState.capture(self.autocast.devices[-1][0] if self.autocast.devices else "cpu")
        return (
            (now.autocast, now.grad, now.settings) == (self.autocast, self.grad, self.settings)
            and _same(now.function_modes, self.function_modes)
            and _same(now.dispatch_modes, self.dispatch_modes)
            and _same(now.saved_tensors_hooks or (), self.saved_tensors_hooks or ())
            and {variable: id(value) for variable, value in now.variables.items()}
            == {variable: id(value) for variable, value in self.variables.items()}
        )

    def of_the_user(self) -> list[Any]:
        """Return hooks and modes that are the user's, and that evaluations call."""
        hooks = [hook for pair in self.saved_tensors_hooks or () for hook in pair]
        return [*hooks, *self.function_modes, *(mode for mode in self.dispatch_modes if _is_users(mode))]

    def without_autocast(self) -> ContextState:
        """Return the same contexts with autocast off, also where closures enter it themselves."""
        return replace(self, autocast=self.autocast.none())

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function with the captured context variables; what it sets is not seen outside of the call."""
        return self.variables.copy().run(function)

    def set(self) -> None:
        """Set all but autocast and context variables, permanently; what is already right is not touched."""
        # Modes are popped first and pushed last, so that they do not see the calls in between.
        function_modes = tuple(overrides._get_current_function_mode_stack())
        dispatch_modes = tuple(dispatch._get_current_dispatch_mode_stack())
        other_functions = not _same(function_modes, self.function_modes)
        other_dispatch = not _same(dispatch_modes, self.dispatch_modes) and all(
            _is_users(mode) for mode in (*dispatch_modes, *self.dispatch_modes)
        )
        if other_functions:
            for _ in function_modes:
                overrides._pop_mode()
        if other_dispatch:
            for _ in dispatch_modes:
                dispatch._pop_mode()
        for (read, write), value in zip(_SETTINGS, self.settings, strict=True):
            if value is not _UNKNOWN and _value_of(read) != value:
                write(value)
        torch._C._set_grad_enabled(self.grad)
        self._set_saved_tensors_hooks()
        if other_dispatch:
            for mode in self.dispatch_modes:
                dispatch._push_mode(mode)
        if other_functions:
            for mode in self.function_modes:
                overrides._push_mode(mode)

    def _set_saved_tensors_hooks(self) -> None:
        now = _saved_tensors_hooks()
        if now is None or self.saved_tensors_hooks is None or _same(now, self.saved_tensors_hooks):
            return
        for _ in now:
            torch._C._autograd._pop_saved_tensors_default_hooks()
        for hooks in reversed(self.saved_tensors_hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(*hooks)


@contextlib.contextmanager
def _autocast_refused_process_wide() -> Iterator[None]:
    """Run a block in which entering an autocast context leaves autocast off, in all threads of the process."""
    enter = torch.autocast.__enter__

    def refuse(context: torch.autocast) -> Any:
        wanted, context._enabled = context._enabled, False
        try:
            return enter(context)
        finally:
            context._enabled = wanted

    torch.autocast.__enter__ = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


@contextlib.contextmanager
def _parametrizations_anew() -> Iterator[None]:
    """Run a block in which no parametrized weight is taken from a cache, which has those of other points."""
    kept, parametrize._cache = parametrize._cache, {}
    try:
        yield
    finally:
        parametrize._cache = kept


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Say whether two sequences hold the same objects."""
    return len(some) == len(others) and all(
        (len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True)))
        if isinstance(a, tuple) and isinstance(b, tuple)
        else a is b
        for a, b in zip(some, others, strict=True)
    )


def _is_users(mode: Any) -> bool:
    """Say whether a dispatch mode is the user's: torch's own modes are not pushed and popped like these."""
    return getattr(mode, "_mode_key", None) is None and getattr(mode, "_dispatch_key", None) is None


def _saved_tensors_hooks() -> tuple[Any, ...] | None:
    """Return the hooks on saved tensors, innermost first; None where this version of torch does not tell."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        return None
    found: list[Any] = []
    try:
        while (hooks := top(True)) is not None:
            found.append(tuple(hooks))
            torch._C._autograd._pop_saved_tensors_default_hooks()
    finally:
        for hooks in reversed(found):
            torch._C._autograd._push_saved_tensors_default_hooks(*hooks)
    return tuple(found)


_UNKNOWN = object()


def _value_of(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        # After a loop has set a setting by torch's newer name, reading it by the older name raises.
        return _UNKNOWN


def _attribute(owner: Any, name: str) -> Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _current_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _settings() -> Iterator[Setting]:
    """Yield the settings that this version of torch has."""
    yield torch.get_default_dtype, torch.set_default_dtype
    yield (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    )
    yield _attribute(torch.utils.deterministic, "fill_uninitialized_memory")
    yield (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.set_anomaly_enabled(*value),
    )
    yield _attribute(parametrize, "_cache_enabled")
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    for name in ("enabled", "benchmark", "deterministic"):
        yield _attribute(torch.backends.cudnn, name)
    yield _current_device, lambda index: None if index is None else torch.cuda.set_device(index)
    # Attention kernels, oneDNN, NNPACK and threads of backward: not every version of torch has all these functions.
    cuda, c = torch.backends.cuda, torch._C
    for owner, getter, setter in (
        (cuda, "flash_sdp_enabled", "enable_flash_sdp"),
        (cuda, "mem_efficient_sdp_enabled", "enable_mem_efficient_sdp"),
        (cuda, "math_sdp_enabled", "enable_math_sdp"),
        (cuda, "cudnn_sdp_enabled", "enable_cudnn_sdp"),
        (cuda, "fp16_bf16_reduction_math_sdp_allowed", "allow_fp16_bf16_reduction_math_sdp"),
        (c, "_get_overrideable_sdp_enabled", "_set_sdp_use_overrideable"),
        (c, "_get_sdp_priority_order", "_set_sdp_priority_order"),
        (c, "_get_cudnn_allow_tf32", "_set_cudnn_allow_tf32"),
        (c, "_get_mkldnn_enabled", "_set_mkldnn_enabled"),
        (c, "_get_mkldnn_deterministic", "_set_mkldnn_deterministic"),
        (c, "_get_nnpack_enabled", "_set_nnpack_enabled"),
        (c, "_is_multithreading_enabled", "_set_multithreading_enabled"),
    ):
        if hasattr(owner, getter) and hasattr(owner, setter):
            yield getattr(owner, getter), getattr(owner, setter)


_SETTINGS = tuple(_settings())
