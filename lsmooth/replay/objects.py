"""Remembers what variables, attributes and containers hold before an evaluation, and puts it back."""

from __future__ import annotations

import array
import operator
import types
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsmooth.replay.reach import ARRAYS, MANY, names_read, own_data, slots_of


@dataclass(frozen=True)
class ObjectState:
    """What functions, objects and containers hold at one moment: references, except for copies of small arrays.

    Attributes:
        places: Each place (variable, attribute, items of a container), and what it held.
    """

    places: tuple[tuple[Any, Any], ...]

    @classmethod
    def capture(cls, holders: Iterable[Any]) -> ObjectState:
        """Return what `holders` hold now."""
        return cls(tuple((place, place.read()) for holder in holders for place in _places_in(holder)))

    def now(self) -> ObjectState:
        """Return the present contents of the same places."""
        return ObjectState(tuple((place, place.read()) for place, _ in self.places))

    def holds(self) -> bool:
        """Say whether the places hold the same objects now; numbers and strings are compared by value."""
        return all(_unchanged(place.read(), contents) for place, contents in self.places)

    def restore(self) -> None:
        """Put the same objects back; unchanged places are not written to."""
        for place, contents in self.places:
            place.put(contents)


def joined(states: Iterable[ObjectState]) -> ObjectState:
    """Return the places of several states, each once."""
    places = {place.key: (place, contents) for state in states for place, contents in state.places}
    return ObjectState(tuple(places.values()))


class _Place:
    """A place that holds objects, and can be read and restored."""

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    @property
    def key(self) -> Any:
        return type(self), id(self.holder)

    def read(self) -> Any:
        raise NotImplementedError

    def put(self, contents: Any) -> None:
        raise NotImplementedError


class _Mapping(_Place):
    """The items of a dict, or the attributes of an object that keeps them in one."""

    def read(self) -> dict[Any, Any]:
        return dict(self.holder)

    def put(self, contents: dict[Any, Any]) -> None:
        holder = self.holder
        now = dict(holder)
        # The methods of dict itself, since subclasses may refuse changes; an OrderedDict must keep track of its order.
        kind = OrderedDict if isinstance(holder, OrderedDict) else dict
        if len(now) == len(contents) and _identical(now, contents):
            for name, value in contents.items():
                if now[name] is not value:
                    kind.__setitem__(holder, name, value)
            return
        kind.clear(holder)
        for name, value in contents.items():
            kind.__setitem__(holder, name, value)


class _Sequence(_Place):
    """The items of a list or deque."""

    def read(self) -> list[Any]:
        return list(self.holder)

    def put(self, contents: list[Any]) -> None:
        holder = self.holder
        if len(holder) == len(contents) and _identical(holder, contents):
            return
        if isinstance(holder, list):
            list.__setitem__(holder, slice(None), contents)
        else:
            holder.clear()
            holder.extend(contents)


class _Tail(_Place):
    """Length and last items of a long list; a loss that changes such a list usually appends to it."""

    def read(self) -> tuple[int, list[Any]]:
        return len(self.holder), self.holder[-MANY:]

    def put(self, contents: tuple[int, list[Any]]) -> None:
        length, tail = contents
        if len(self.holder) > length:
            list.__delitem__(self.holder, slice(length, None))
        elif 0 < length - len(self.holder) <= len(tail):
            list.extend(self.holder, tail[len(self.holder) - length :])


class _Set(_Place):
    """The members of a set."""

    def read(self) -> set[Any]:
        return set(self.holder)

    def put(self, contents: set[Any]) -> None:
        if len(self.holder) != len(contents) or {id(item) for item in self.holder} != {id(item) for item in contents}:
            self.holder.clear()
            self.holder.update(contents)


class _Array(_Place):
    """The numbers in an array or bytearray."""

    def read(self) -> Any:
        return self.holder.copy() if isinstance(self.holder, np.ndarray) else self.holder[:]

    def put(self, contents: Any) -> None:
        if _unchanged(self.holder, contents):
            return
        if not isinstance(self.holder, np.ndarray):
            self.holder[:] = contents
        elif self.holder.flags.writeable and self.holder.shape == contents.shape:
            np.copyto(self.holder, contents)


class _Slots(_Place):
    """The attributes of an object that keeps them in slots."""

    def read(self) -> dict[str, Any]:
        return {name: getattr(self.holder, name, _ABSENT) for name in slots_of(self.holder)}

    def put(self, contents: dict[str, Any]) -> None:
        for name, value in contents.items():
            if getattr(self.holder, name, _ABSENT) is value:
                continue
            # As a frozen dataclass sets its own attributes.
            if value is _ABSENT:
                object.__delattr__(self.holder, name)
            else:
                object.__setattr__(self.holder, name, value)


class _Cell(_Place):
    """A variable that a function shares with its enclosing function."""

    def read(self) -> Any:
        try:
            return self.holder.cell_contents
        except ValueError:
            return _ABSENT

    def put(self, contents: Any) -> None:
        if self.read() is contents:
            return
        if contents is _ABSENT:
            del self.holder.cell_contents
        else:
            self.holder.cell_contents = contents


class _Globals(_Place):
    """The global variables that a function reads or sets."""

    def __init__(self, holder: dict[str, Any], names: frozenset[str]) -> None:
        super().__init__(holder)
        self._names = names

    @property
    def key(self) -> Any:
        return type(self), id(self.holder), self._names

    def read(self) -> dict[str, Any]:
        return {name: self.holder.get(name, _ABSENT) for name in self._names}

    def put(self, contents: dict[str, Any]) -> None:
        for name, value in contents.items():
            if self.holder.get(name, _ABSENT) is value:
                continue
            if value is _ABSENT:
                del self.holder[name]
            else:
                self.holder[name] = value


class _Own(_Place):
    """The data attributes of a class or Python module of the user."""

    def read(self) -> dict[str, Any]:
        return own_data(self.holder)

    def put(self, contents: dict[str, Any]) -> None:
        now = own_data(self.holder)
        for name in now.keys() - contents.keys():
            delattr(self.holder, name)
        for name, value in contents.items():
            if now.get(name, _ABSENT) is not value:
                setattr(self.holder, name, value)


_ABSENT = object()


def _identical(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(map(operator.is_, some, others))


def _unchanged(now: Any, then: Any) -> bool:
    """Say whether a place's contents are the same as before."""
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(then, np.ndarray):
        return bool(now.shape == then.shape and now.tobytes() == then.tobytes())
    if isinstance(then, dict):
        return now.keys() == then.keys() and all(_unchanged_item(now[name], then[name]) for name in then)
    if isinstance(then, set):
        return {id(item) for item in now} == {id(item) for item in then}
    if isinstance(then, list):
        return len(now) == len(then) and all(map(_unchanged_item, now, then))
    if isinstance(then, tuple) and len(then) == 2 and isinstance(then[1], list):
        return now[0] == then[0] and _unchanged(now[1], then[1])
    return _unchanged_item(now, then)


def _unchanged_item(now: Any, then: Any) -> bool:
    plain = (int, float, complex, bool, str, bytes, bytearray, array.array)
    return now is then or (type(now) is type(then) and isinstance(then, plain) and bool(now == then))


def _places_in(holder: Any) -> list[_Place]:
    if isinstance(holder, types.FunctionType):
        cells: list[_Place] = [_Cell(cell) for cell in holder.__closure__ or ()]
        names = frozenset(names_read(holder.__code__))
        return [*cells, _Globals(holder.__globals__, names), _Mapping(vars(holder))]
    if isinstance(holder, ARRAYS):
        return [_Array(holder)]
    if isinstance(holder, (type, types.ModuleType)):
        return [_Own(holder)]
    places: list[_Place] = [_Slots(holder)] if slots_of(holder) else []
    if hasattr(holder, "__dict__"):
        places.append(_Mapping(vars(holder)))
    if isinstance(holder, (dict, list, set, deque)):
        if len(holder) <= MANY:
            kind = _Mapping if isinstance(holder, dict) else _Set if isinstance(holder, set) else _Sequence
            places.append(kind(holder))
        elif isinstance(holder, list):
            places.append(_Tail(holder))
    return places
