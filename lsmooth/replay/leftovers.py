"""Finds what evaluating a loss again changes and nothing puts back; used once, at the first measured step."""

from __future__ import annotations

import io
import operator
import os
import sys
import types
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lsmooth.replay.contents import imprint
from lsmooth.replay.objects import ObjectState
from lsmooth.replay.reach import CACHE, DEEP, MEMORY, reached
from lsmooth.replay.state import RandomState

# At most this many holders beyond the reach of replays are looked at, and no larger arrays.
_MOST = 20_000
_MOST_BYTES = 1 << 24
# Depth to which iterators of iterators are looked into.
_NESTED = 3
# The warning names at most this many changed things.
_NAMED = 3


class Leftovers:
    """The state, at one moment, of what closures reach and replays do not put back.

    These are things further away than `reached` looks, and things that cannot be set to an earlier state: iterators,
    files, large arrays and containers.

    Args:
        starts: The closures.
    """

    def __init__(self, starts: Sequence[Any]) -> None:
        near, far = reached(*starts), reached(*starts, reach=DEEP)
        known = {id(holder) for holder in near.holders}
        beyond = [holder for holder in far.holders if id(holder) not in known][:_MOST]
        self._holders = [(holder, ObjectState.capture([holder])) for holder in beyond]
        # Replays put back the global variables that functions name; `globals()["x"]` names none.
        names = dict.fromkeys(f.__globals__.get("__name__") for f in far.holders if isinstance(f, types.FunctionType))
        modules = [(name, sys.modules[name]) for name in names if name in sys.modules]
        self._globals = [(name, ObjectState.capture([module])) for name, module in modules]
        self._environment = dict(os.environ)
        own = {id(tensor) for tensor in near.tensors}
        self._tensors = [(t, imprint(t)) for t in far.tensors if id(t) not in own and not t.is_inference()]
        self._ends = [(end, _state_of(end)) for end in far.ends]
        drawn_from = [generator for generator in far.generators if not any(generator is own for own in near.generators)]
        self._random = RandomState.capture(*drawn_from)

    def changed(self) -> list[str]:
        """Return a description of each thing that has changed since, each description once."""
        found = [f"the contents of {name_of(holder)}" for holder, state in self._holders if not state.holds()]
        found += [f"global variables of {module}" for module, state in self._globals if not state.holds()]
        found += ["os.environ"] if os.environ != self._environment else []
        found += ["a tensor that it reaches" for tensor, then in self._tensors if imprint(tensor) != then]
        found += [name_of(end) for end, then in self._ends if _state_of(end) != then]
        found += [name_of(generator) for generator in self._random.others_changed()]
        return list(dict.fromkeys(found))


def sentence(changed: Sequence[str]) -> str:
    """Return the warning about things that have changed."""
    named = ", ".join(changed[:_NAMED]) + (", …" if len(changed) > _NAMED else "")
    return (
        f"Evaluating the loss again has changed {named}, which is not put back, so that training may no longer be what "
        "it would be without the recorder; leave such changes out while lsmooth.replay.replaying() is true."
    )


def name_of(value: Any) -> str:
    """Return what a warning calls a thing."""
    if isinstance(value, io.IOBase):
        return f"the file {getattr(value, 'name', type(value).__name__)}"
    if isinstance(value, CACHE):
        return f"the cache of {getattr(value, '__name__', 'a function')}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _state_of(value: Any, depth: int = _NESTED) -> Any:
    """Return something that differs once a value was changed: a position, a length, a checksum."""
    if isinstance(value, io.IOBase):
        try:
            return value.tell()
        except (OSError, ValueError):
            return None
    if isinstance(value, np.ndarray):
        if value.nbytes > _MOST_BYTES or value.dtype.hasobject:
            return None
        return zlib.crc32(value.tobytes())
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        inside = () if frame is None else (*frame.f_locals.values(), value.gi_yieldfrom)
        return None if frame is None else (frame.f_lasti, *(_state_of(item, depth - 1) for item in inside if depth))
    if isinstance(value, MEMORY):
        try:
            view: memoryview = memoryview(value)
        except (BufferError, TypeError, ValueError):
            # It has been released, or has no bytes.
            return None
        return zlib.crc32(view.tobytes()) if view.nbytes <= _MOST_BYTES else None
    if isinstance(value, CACHE):
        # A cache that is only read counts its hits, which no loss depends on.
        counts = value.cache_info()
        return counts.misses, counts.currsize
    if isinstance(value, Iterator):
        return operator.length_hint(value, -1), repr(value), *_parts(value, depth)
    if isinstance(value, (dict, set, list)):
        return len(value), hash(tuple(map(id, value.values() if isinstance(value, dict) else value)))
    # `__reduce__` returns new ranges and tuples, whose identity says nothing.
    if isinstance(value, tuple):
        return tuple(_state_of(item, depth - 1) for item in value) if depth else len(value)
    return value if isinstance(value, (int, float, str, bytes, range)) else id(value)


def _parts(iterator: Iterator[Any], depth: int) -> tuple[Any, ...]:
    """Return the states of the iterators inside an iterator (zip, map, enumerate)."""
    if not depth:
        return ()
    try:
        with warnings.catch_warnings():
            # Python 3.14 removes this from itertools.
            warnings.simplefilter("ignore", DeprecationWarning)
            made_of: Any = iterator.__reduce__()
    except Exception:
        return ()
    given = made_of[1:] if isinstance(made_of, tuple) else ()
    return tuple(_state_of(part, depth - 1) for item in given if isinstance(item, tuple) for part in item)
