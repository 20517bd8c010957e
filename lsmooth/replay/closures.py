"""What a closure reads: kept as it is now, and looked through for what evaluating it again would change."""

from __future__ import annotations

import functools
import random
import types
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Closure = Callable[[], Any]
# Objects that random numbers are drawn from, besides those that torch, numpy and `random` keep for everyone.
Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def frozen(closure: Closure) -> Callable[[], Closure]:
    """Return a factory of copies of `closure` that see its variables as they are now.

    By the time a step is replayed, a loop may have rebound the variables that its closure reads (gradient accumulation
    takes the next batch before the step), and what a replay assigns to `nonlocal` or `global` names must not reach the
    loop. A function's cells and its module's globals are copied; other callables are used as they are.
    """
    if not isinstance(closure, types.FunctionType):
        return lambda: closure
    names = dict(closure.__globals__)
    contents = [(True, c.cell_contents) if _is_bound(c) else (False, None) for c in closure.__closure__ or ()]

    def thaw() -> Closure:
        cells = tuple(types.CellType(value) if bound else types.CellType() for bound, value in contents)
        copy = types.FunctionType(closure.__code__, dict(names), closure.__name__, closure.__defaults__, cells or None)
        copy.__kwdefaults__ = closure.__kwdefaults__
        copy.__dict__.update(closure.__dict__)
        return copy

    return thaw


# How far from a closure things are looked for: from variable to attribute to item, and so on.
_REACH = 4
# Generators are looked for in variables and their attributes: those of data loaders lie deeper, and are drawn from by
# other threads at any time.
_REACH_OF_GENERATORS = 2
# Containers with more items than this hold data, not models.
_FEW = 64


def reached(*starts: Any) -> tuple[list[nn.Module], list[Generator]]:
    """Return the models and the random number generators that closures and their arguments can reach.

    They are looked for in the variables that functions read, in the objects that methods belong to, in arguments that
    are bound already, in attributes of objects, and in small containers: a closure that computes one network's loss by
    way of another (a generator's, by the discriminator) changes the buffers of both. Modules that a model registers are
    part of it; of its other attributes, only these kinds and lists are looked at.
    """
    models: list[nn.Module] = []
    generators: list[Generator] = []
    seen: set[int] = set()
    # Nearest first: a thing is taken at its shortest distance.
    waiting = deque((start, 0) for start in starts)
    while waiting:
        value, distance = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(type(value), nn.Module):
            models.append(value)
            # Models that are kept from being registered lie in lists and the like.
            held = (item for module in value.modules() for item in vars(module).values())
            waiting.extend((item, 1) for item in held if issubclass(type(item), (*_GENERATORS, nn.Module, list, tuple)))
        elif issubclass(type(value), _GENERATORS):
            if distance <= _REACH_OF_GENERATORS and not isinstance(value, random.SystemRandom):
                generators.append(value)
        elif distance < _REACH:
            waiting.extend((item, distance + 1) for item in _within(value))
    return models, generators


def _within(value: Any) -> list[Any]:
    """Return what can be reached from a value in one step."""
    if type(value) in weakref.ProxyTypes:
        # It passes for what it stands for, and may outlive that.
        return []
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_bound(cell)]
        names = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
        return [*cells, *names, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.BuiltinMethodType):
        return [value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return list(value.values()) if len(value) <= _FEW else []
    if isinstance(value, (list, tuple, set)):
        return list(value) if len(value) <= _FEW else []
    if isinstance(value, (type, types.ModuleType, Tensor)):
        return []
    return list(getattr(value, "__dict__", {}).values())


def _is_bound(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
