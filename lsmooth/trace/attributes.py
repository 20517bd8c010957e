"""Attributes of a trace file: texts of fixed length, which lie under a checksum with the object that they describe.

HDF5 keeps texts of variable length in a heap without a checksum, and loops for ever on some damaged heaps; so traces
have none, and what a file that is no trace keeps there is not looked at.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import h5py
import numpy as np


def put_text(item: h5py.HLObject, name: str, text: str) -> None:
    """Give a file, group or dataset an attribute."""
    raw = text.encode("utf-8")
    item.attrs.create(name, np.array(raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw)))))


def get_attribute(item: h5py.HLObject, name: str) -> Any:
    """Return an attribute as text, a number or an array.

    Raises:
        KeyError: There is none of this name.
        ValueError: It is of a kind that traces do not have.
    """
    if name not in item.attrs:
        raise KeyError(f"it has no attribute {name}")
    kind = item.attrs.get_id(name).get_type()
    if kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING) or (
        kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()
    ):
        raise ValueError(f"the attribute {name} is not of a kind that traces have")
    value = item.attrs[name]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if isinstance(value, np.generic) else value


def get_attributes(item: h5py.HLObject) -> dict[str, Any]:
    """Return all attributes of a file, group or dataset."""
    return {name: get_attribute(item, name) for name in item.attrs}


def from_json(value: Any) -> Any:
    """Return what a text holds if it is a JSON object or list, and anything else as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
    return value
