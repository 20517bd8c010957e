"""What objects hold: remembered before an evaluation, and put back: variables, attributes, items of containers."""

from __future__ import annotations

import operator
import types
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lsmooth.replay.reach import names_read

# Of containers with more items, only the last so many of a list are remembered.
_MANY = 4096


@dataclass(frozen=True)
class ObjectState:
    """What functions, objects and containers hold at one moment: references to the same things, and no copies.

    Attributes:
        places: Where things are held, and the things: variables of functions, attributes, items.
    """

    places: tuple[tuple[Any, Any], ...]

    @classmethod
    def capture(cls, holders: Iterable[Any]) -> ObjectState:
        """Return what `holders` hold now."""
        return cls(tuple((place, place.read()) for holder in holders for place in _places_in(holder)))

    def now(self) -> ObjectState:
        """Return what is held in the same places now."""
        return ObjectState(tuple((place, place.read()) for place, _ in self.places))

    def restore(self) -> None:
        """Put the same things back; what is as it was is not written to."""
        for place, contents in self.places:
            place.put(contents)


def joined(states: Iterable[ObjectState]) -> ObjectState:
    """Return the places of several states, each once."""
    places = {place.key: (place, contents) for state in states for place, contents in state.places}
    return ObjectState(tuple(places.values()))


class _Place:
    """Where things are held."""

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
        # Subclasses may refuse to be changed by other ways than their own; an OrderedDict keeps books of its order.
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
    """How many items a long list has, and the last ones: a loss appends to such lists, if it changes them."""

    def read(self) -> tuple[int, list[Any]]:
        return len(self.holder), self.holder[-_MANY:]

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


class _Cell(_Place):
    """A variable that functions share."""

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
    """The variables of a module that a function reads or sets."""

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


_ABSENT = object()


def _identical(some: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(map(operator.is_, some, others))


def _places_in(holder: Any) -> list[_Place]:
    if isinstance(holder, types.FunctionType):
        cells: list[_Place] = [_Cell(cell) for cell in holder.__closure__ or ()]
        return [*cells, _Globals(holder.__globals__, frozenset(names_read(holder.__code__)))]
    places: list[_Place] = []
    if hasattr(holder, "__dict__"):
        places.append(_Mapping(vars(holder)))
    if isinstance(holder, (dict, list, set, deque)):
        if len(holder) <= _MANY:
            kind = _Mapping if isinstance(holder, dict) else _Set if isinstance(holder, set) else _Sequence
            places.append(kind(holder))
        elif isinstance(holder, list):
            places.append(_Tail(holder))
    return places
