"""The check of a checkpoint's structure: plain values against type hints, tensors against a run's own.

A checkpoint comes from a file that anyone may have edited. Nothing of it reaches PyTorch unless it has the form that
the run itself would have given it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Larger numbers fit into no tensor and no HDF5 dataset.
_INT_LIMIT = 2**63


class StructureError(ValueError):
    """A part of a checkpoint has a wrong form; the message names the place."""


def check_hint(value: Any, hint: Any, place: str) -> None:
    """Check a value, with all that it contains, against a type hint.

    Supported hints are int, float, bool, str, None, Any, Tensor, unions, literals, `tuple[X, ...]`, `Sequence[X]`,
    `Mapping[K, X]`, typed dictionaries and dataclasses. The last two stand for a dictionary with their entries. An int
    has at most 64 bits. A float may be given as an int.

    Args:
        value: The value.
        hint: What it must be.
        place: Where it stands, in words, for the error.

    Raises:
        StructureError: It is something else.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return
    if typing.is_typeddict(hint):
        _check_entries(value, hint, hint.__required_keys__, place)
    elif dataclasses.is_dataclass(hint):
        _check_entries(value, hint, {field.name for field in dataclasses.fields(hint) if _is_required(field)}, place)
    elif origin in (typing.Union, types.UnionType):
        if not any(_is(value, part) for part in parts):
            raise _wrong(place)
    elif origin is typing.Literal:
        if not (isinstance(value, str) and value in parts):
            raise _wrong(place)
    elif origin is tuple or origin is Sequence:
        if not isinstance(value, (list, tuple)):
            raise _wrong(place)
        for number, item in enumerate(value):
            check_hint(item, parts[0], f"{place}[{number}]")
    elif origin is Mapping:
        if not isinstance(value, dict):
            raise _wrong(place)
        for key, item in value.items():
            check_hint(key, parts[0], f"a key of {place}")
            check_hint(item, parts[1], f"{place}[{_shown(key)}]")
    elif not _is_plain(value, hint):
        raise _wrong(place)


def _is(value: Any, hint: Any) -> bool:
    try:
        check_hint(value, hint, "")
    except StructureError:
        return False
    return True


def _is_plain(value: Any, kind: Any) -> bool:
    if kind in (None, types.NoneType):
        return value is None
    if kind in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and -_INT_LIMIT <= value < _INT_LIMIT
    return isinstance(value, kind)


def _check_entries(value: Any, hint: Any, required: Collection[str], place: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(place)
    hints = typing.get_type_hints(hint)
    for key in value:
        if key not in hints:
            raise StructureError(f"{place} has an entry {_shown(key)} that is not known")
    for key, kind in hints.items():
        if key in value:
            check_hint(value[key], kind, f"{place}[{key}]")
        elif key in required:
            raise StructureError(f"{place} has no entry {key}")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def check_like(value: Any, example: Any, place: str, *, exact: bool = True) -> None:
    """Check that a value is built as an example is: the same containers, keys and kinds of values.

    Args:
        value: The value.
        example: The example.
        place: Where the value stands, in words, for the error.
        exact: Tensors have the example's shape and dtype; else the same number of dimensions, and any floating dtype
            where the example has one.

    Raises:
        StructureError: It is built in another way.
    """
    if isinstance(example, Tensor):
        _check_tensor(value, example, place, exact)
    elif isinstance(example, dict):
        if not isinstance(value, dict) or value.keys() != example.keys():
            raise _wrong(place)
        for key, item in example.items():
            check_like(value[key], item, f"{place}[{_shown(key)}]", exact=exact)
    elif isinstance(example, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(example):
            raise _wrong(place)
        for number, item in enumerate(example):
            check_like(value[number], item, f"{place}[{number}]", exact=exact)
    elif type(value) is not type(example):
        raise _wrong(place)


def _check_tensor(value: Any, example: Tensor, place: str, exact: bool) -> None:
    if not isinstance(value, Tensor):
        raise _wrong(place)
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise StructureError(f"{place} is not a plain tensor")
    if exact and value.dtype != example.dtype:
        raise StructureError(f"{place} is of {value.dtype}, not {example.dtype}")
    if value.dtype.is_floating_point != example.dtype.is_floating_point:
        raise StructureError(f"{place} is of {value.dtype}, not {example.dtype}")
    if value.shape != example.shape if exact else value.ndim != example.ndim:
        raise StructureError(f"{place} has shape {tuple(value.shape)}, not {tuple(example.shape)}")


def _wrong(place: str) -> StructureError:
    return StructureError(f"{place} is not of the kind that it must be")


def _shown(key: Any) -> str:
    """Return a key as it is shown: short, and without control characters."""
    text = "".join(character if character.isprintable() else "?" for character in str(key))
    return text if len(text) <= 60 else f"{text[:57]}..."
