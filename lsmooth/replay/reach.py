"""Finds what a closure can read and change, by following its variables, their attributes, and so on."""

from __future__ import annotations

import array
import functools
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

# Distances from a closure: a step from an object to its attribute, and half a step from a container or class to an
# item. Things further away than `_REACH` are not looked for.
_STEP, _HALF = 2, 1
_REACH = 4 * _STEP
# Generators are looked for less far, in variables and their attributes. Those of data loaders lie deeper, and other
# threads draw from them at any time.
_REACH_OF_GENERATORS = 2 * _STEP
_CONTAINERS = (list, dict, set, deque)
# The first measured step looks this far for things that are changed and not put back.
DEEP = 3 * _REACH
# Types of arrays; arrays of at most this many bytes are put back.
ARRAYS = (np.ndarray, bytearray, array.array)
_SMALL_ARRAY = 1 << 16
# Containers with more items than this hold data, not models.
_FEW = 64
# Of longer containers, only lists are put back, and of these only the last `MANY` items.
MANY = 4096
# Modules and classes of machinery that runs loops (threads, files, optimizers, data loaders, recorders) and that no
# loss reads. It is not put back: a step changes an optimizer, and other threads change the rest at any time.
_MACHINERY = sys.stdlib_module_names - {"argparse", "builtins", "collections", "types"} | {"lsmooth", "h5py"}
_MACHINERY_INSIDE = (
    *("torch.optim", "torch.utils.data", "torch.utils.tensorboard", "torch.amp", "torch.cuda", "torch.distributed"),
    *("torch.nn.functional", "torch.nn.parallel", "torch._dynamo", "torch.jit", "torch.fx", "torch.multiprocessing"),
)
_MACHINES = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.utils.data.DataLoader)
# Top-level packages that are not the user's own; other installed packages are recognised by their path.
_INSTALLED = sys.stdlib_module_names - {"__main__"} | {"torch", "numpy", "lsmooth", "h5py"}
_NO_DATA = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property)
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


def reached(*starts: Any, reach: int = _REACH) -> Reached:
    """Return what closures and their arguments can reach.

    Followed are variables that functions read, bound objects and arguments, attributes, hooks, and items of small
    containers. So a closure that computes a generator's loss by a discriminator reaches both networks.

    Args:
        *starts: The closures and arguments.
        reach: Things further away than this distance are left out.
    """
    found = Reached()
    seen: set[int] = set()
    # Nearest first, at the shortest distance. Things behind machinery are followed (True becomes False), not put back.
    waiting = deque((start, 0, True) for start in starts)
    while waiting:
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
        elif issubclass(kind, Tensor):
            if holds:
                found.tensors.append(value)
        elif issubclass(kind, _GENERATORS):
            if distance <= _REACH_OF_GENERATORS and not isinstance(value, random.SystemRandom):
                found.generators.append(value)
        elif issubclass(kind, ARRAYS):
            if holds:
                (found.holders if _bytes_of(value) <= _SMALL_ARRAY else found.ends).append(value)
        elif issubclass(kind, io.IOBase) or (issubclass(kind, Iterator) and not hasattr(value, "__dict__")):
            if holds:
                found.ends.append(value)
        elif issubclass(kind, (type, types.ModuleType)):
            if holds and distance < reach and _is_own(value):
                found.holders.append(value)
                waiting.extend((item, distance + _HALF, True) for item in own_data(value).values())
                waiting.extendleft((base, distance, True) for base in getattr(value, "__bases__", ()))
        elif distance <= reach:
            machinery = _is_machinery(value if kind is types.FunctionType else kind)
            if machinery and kind is types.FunctionType and distance > 0:
                continue
            holds = holds and not machinery
            contains = issubclass(kind, _CONTAINERS)
            if holds and (contains or (distance < reach and _may_change(value))):
                found.holders.append(value)
                if contains and len(value) > MANY:
                    found.ends.append(value)
            if distance < reach:
                waiting.appendleft((kind, distance, holds))
                further = distance + (_HALF if contains else _STEP)
                waiting.extend((item, further, holds) for item in _within(value))
    return found


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
        return [*cells, *names, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.BuiltinMethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return list(value.values()) if len(value) <= _FEW else []
    if isinstance(value, (list, tuple, set, deque)):
        return list(value) if len(value) <= _FEW else []
    in_slots = [getattr(value, name) for name in slots_of(value) if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).values(), *in_slots]


def is_bound(cell: types.CellType) -> bool:
    """Say whether the variable in a closure's cell has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
