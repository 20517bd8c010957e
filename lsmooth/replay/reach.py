"""Finds what a closure can read and change, by following its variables, their attributes, and so on."""

from __future__ import annotations

import array
import contextvars
import ctypes
import functools
import gc
import io
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Types of random number generators, besides the global ones of torch, NumPy and `random`.
Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)

# Distances from a closure: a step from an object to its attribute, and half a step from a container, class or wrapper
# to an item. Things further away than `_REACH` are not looked for.
_STEP, _HALF = 2, 1
_REACH = 4 * _STEP
_CONTAINERS = (list, dict, set, deque)
_WRAPPERS = (functools.partial, contextvars.ContextVar)
# The first measured step looks this far for things that are changed and not put back.
DEEP = 3 * _REACH
# Types of arrays; arrays of at most this many bytes are put back.
ARRAYS = (np.ndarray, bytearray, array.array)
_SMALL_ARRAY = 1 << 16
# What `functools.lru_cache` makes of a function.
CACHE = functools._lru_cache_wrapper
# Types of views of memory, the values of `ctypes` among them.
MEMORY: Any = (memoryview, ctypes.c_int.__mro__[-2])
_LEAVES = (Tensor, *_GENERATORS, *ARRAYS, *MEMORY, io.IOBase)
# Containers with more items than this hold data, not models.
_FEW = 64
# Of longer containers, only lists are put back, and of these only the last `MANY` items.
MANY = 4096
# Modules and classes of machinery that runs loops (threads, files, optimizers, data loaders, recorders) and that no
# loss reads. It is not put back: a step changes an optimizer, and other threads change the rest at any time.
_HOLDS_DATA = {"_contextvars", "_thread", "argparse", "builtins", "collections", "functools", "types", "weakref"}
_MACHINERY = sys.stdlib_module_names - _HOLDS_DATA | {"lsmooth", "h5py"}
_MACHINERY_INSIDE = (
    *("torch.optim", "torch.utils.data", "torch.utils.tensorboard", "torch.amp", "torch.cuda", "torch.distributed"),
    *("torch.nn.functional", "torch.nn.parallel", "torch._dynamo", "torch.jit", "torch.fx", "torch.multiprocessing"),
)
_MACHINES = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.utils.data.DataLoader)
# Top-level packages that are not the user's own; other installed packages are recognised by their path.
_INSTALLED = sys.stdlib_module_names - {"__main__"} | {"torch", "numpy", "lsmooth", "h5py"}
_NO_DATA = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property)
# Functions of a class that torch calls; and those called by an operator or a statement that no loss consists of.
_CALLED_BY_TORCH = frozenset(("forward", "backward", "setup_context"))
_NOT_CALLED_BY_A_LOSS = frozenset(("__init__", "__new__", "__del__", "__repr__", "__reduce__", "__class_getitem__"))
# Hooks that torch calls for every module.
_GLOBAL_HOOKS = tuple(
    hooks
    for name, hooks in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and name.endswith("_hooks")
)
# Attributes that every `nn.Module` has; of these, only hooks are followed.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass
class Reached:
    """What closures and their arguments can reach.

    Attributes:
        models: Modules, without those registered in other reached modules.
        generators: Random number generators.
        tensors: Tensors that are not registered in these models.
        holders: Objects whose references to others may be changed: functions, containers, modules, the user's own
            classes, and other objects with attributes.
        ends: Things that may change but are not put back: large arrays and containers, files, iterators.
    """

    models: list[nn.Module] = field(default_factory=list)
    generators: list[Generator] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    holders: list[Any] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)

    def take(self, value: Any) -> None:
        """Take a tensor, a generator, an array, a file or an iterator, which lead no further."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, _GENERATORS):
            if not isinstance(value, random.SystemRandom):
                self.generators.append(value)
        elif isinstance(value, ARRAYS) and _bytes_of(value) <= _SMALL_ARRAY:
            self.holders.append(value)
        else:
            self.ends.append(value)


def reached(*starts: Any, reach: int = _REACH) -> Reached:
    """Return what closures and their arguments can reach.

    Followed are variables that functions read, bound objects and arguments, attributes, hooks, items of small
    containers, and methods of the user's own classes that code calls by their names. So a closure that computes a
    generator's loss by a discriminator reaches both networks.

    Args:
        *starts: The closures and arguments.
        reach: Things further away than this distance are left out.
    """
    found = Reached()
    seen: set[int] = set()
    methods = _Methods()
    # Nearest first, at the shortest distance. Things behind machinery are followed (True becomes False), not put back.
    waiting = deque((start, 0, True) for start in (*starts, *(hooks for hooks in _GLOBAL_HOOKS if hooks)))
    while waiting or (waiting := deque(methods.called())):
        value, distance, holds = waiting.popleft()
        kind = type(value)
        # A weak proxy pretends to be its referent, which may be gone.
        if id(value) in seen or kind in _LEADS_NOWHERE or kind in weakref.ProxyTypes:
            continue
        seen.add(id(value))
        if issubclass(kind, nn.Module):
            found.models.append(value)
            waiting.extendleft((own, distance, True) for own in {type(module) for module in value.modules()})
            for module in value.modules():
                if not _is_machinery(type(module)):
                    found.holders.append(module)
                waiting.extend((item, far, True) for item, far in _held_by(module))
        elif issubclass(kind, _LEAVES) or (issubclass(kind, Iterator) and not hasattr(value, "__dict__")):
            # Generators of data loaders lie deeper than attributes of variables, and other threads draw from them.
            if distance <= reach // 2 if issubclass(kind, _GENERATORS) else holds:
                found.take(value)
                if issubclass(kind, Tensor) and value._backward_hooks:
                    waiting.append((value._backward_hooks, distance, True))
        elif issubclass(kind, (type, types.ModuleType)):
            if holds and distance < reach and _is_own(value):
                found.holders.append(value)
                methods.of(value, distance)
                waiting.extend((item, distance + _HALF, True) for item in own_data(value).values())
                waiting.extendleft((base, distance, True) for base in (kind, *getattr(value, "__bases__", ())))
        elif distance <= reach:
            machinery = _is_machinery(value if kind is types.FunctionType else kind)
            if kind is types.FunctionType:
                if machinery and distance > 0:
                    continue
                methods.named.update(names_read(value.__code__))
            holds = holds and not machinery
            contains = issubclass(kind, _CONTAINERS)
            if holds and (contains or (distance < reach and _may_change(value))):
                found.holders.append(value)
                if kind is CACHE or (contains and len(value) > MANY):
                    found.ends.append(value)
            if distance < reach:
                waiting.appendleft((kind, distance, holds))
                further = distance + (_HALF if contains or kind in _WRAPPERS else _STEP)
                waiting.extend((item, further, holds) for item in _within(value))
    return found


class _Methods:
    """Functions of classes, which code calls by their names, or by an operator.

    Attributes:
        named: Names that code looks up.
    """

    def __init__(self) -> None:
        self.named = set(_CALLED_BY_TORCH)
        self._waiting: list[tuple[str, Any, int]] = []

    def of(self, owner: type | types.ModuleType, distance: int) -> None:
        """Take note of a class of the user's, found at a distance."""
        if isinstance(owner, type):
            self._waiting += [(name, item, distance) for name, item in vars(owner).items()]

    def called(self) -> list[tuple[Any, int, bool]]:
        """Return functions that code may call, each once, with their distances."""
        found: list[tuple[Any, int, bool]] = []
        waiting: list[tuple[str, Any, int]] = []
        for name, item, distance in self._waiting:
            by_operator = name[:2] == "__" == name[-2:] and name not in _NOT_CALLED_BY_A_LOSS
            if by_operator or name in self.named:
                found += [(function, distance, True) for function in _functions_of(item)]
            else:
                waiting.append((name, item, distance))
        self._waiting = waiting
        return found


def _functions_of(item: Any) -> list[types.FunctionType]:
    """Return the functions behind what a class holds under a name."""
    if isinstance(item, property):
        parts: list[Any] = [item.fget, item.fset, item.fdel]
    elif isinstance(item, (staticmethod, classmethod)):
        parts = [item.__func__]
    else:
        parts = [getattr(item, "func", item)]
    return [part for part in parts if isinstance(part, types.FunctionType)]


_LEADS_NOWHERE = frozenset((int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size))


def _held_by(module: nn.Module) -> Iterator[tuple[Any, int]]:
    """Yield what a module holds besides parameters, buffers and registered modules, each with its distance."""
    for name, item in vars(module).items():
        if type(item) in _LEADS_NOWHERE or (name in _OF_EVERY_MODULE and not (name.endswith("hooks") and item)):
            continue
        # Models that are deliberately not registered lie in lists and the like.
        near = isinstance(item, (*_GENERATORS, *_CONTAINERS, nn.Module, Tensor, tuple))
        yield item, _STEP if near else 2 * _STEP
    for parameter in module._parameters.values():
        if parameter is not None:
            for hooks in (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)):
                if hooks:
                    yield hooks, _STEP


def _may_change(value: Any) -> bool:
    """Say whether a value has attributes, which an evaluation or the loop may set to other objects."""
    return hasattr(value, "__dict__") or bool(slots_of(value))


def own_data(value: type | types.ModuleType) -> dict[str, Any]:
    """Return the data attributes of a class or module: no functions, classes, modules or descriptors."""
    return {name: item for name, item in vars(value).items() if not (name[:2] == "__" or isinstance(item, _NO_DATA))}


def _is_own(value: type | types.ModuleType) -> bool:
    """Say whether a class or module is the user's own, and not installed."""
    name = _home_of(value)
    if not name or name.partition(".")[0] in _INSTALLED:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or "-packages" not in file


def _is_machinery(value: type | types.FunctionType) -> bool:
    """Say whether a class or function is machinery that runs loops, which no loss reads."""
    if isinstance(value, type) and issubclass(value, _MACHINES):
        return True
    name = _home_of(value)
    return name.partition(".")[0] in _MACHINERY or name.startswith(_MACHINERY_INSIDE)


def _home_of(value: type | types.FunctionType | types.ModuleType) -> str:
    """Return the dotted name of a module, or of the module that defines a class or function; "" for none."""
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def slots_of(value: Any) -> list[str]:
    """Return the names of the attributes that an object keeps in slots."""
    names: list[str] = []
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{kind.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _bytes_of(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else memoryview(value).nbytes


def names_read(code: types.CodeType) -> set[str]:
    """Return the global names and attributes that code looks up, including functions and comprehensions inside."""
    names: set[str] = set()
    waiting = [code]
    while waiting:
        inner = waiting.pop()
        names.update(inner.co_names)
        waiting.extend(constant for constant in inner.co_consts if isinstance(constant, types.CodeType))
    return names


def _within(value: Any) -> list[Any]:
    """Return the objects that a value refers to directly."""
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if is_bound(cell)]
        names = [value.__globals__[name] for name in names_read(value.__code__) if name in value.__globals__]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*cells, *names, *defaults, *vars(value).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
        return [value.__self__]
    if isinstance(value, contextvars.ContextVar):
        return [value.get(None)]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return list(value.values()) if len(value) <= _FEW else []
    if isinstance(value, (list, tuple, set, deque)):
        return list(value) if len(value) <= _FEW else []
    in_slots = [getattr(value, name) for name in slots_of(value) if hasattr(value, name)]
    held = [*getattr(value, "__dict__", {}).values(), *in_slots]
    if not held and type(value).__module__ != "builtins":
        # Classes written in C, such as those that hold the arrays of a DataFrame.
        return gc.get_referents(value)
    return held


def is_bound(cell: types.CellType) -> bool:
    """Say whether the variable in a closure's cell has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
