"""Attributes of a trace file, which are strings of fixed length or numbers.

HDF5 keeps strings of fixed length under the checksum of their object. It keeps strings of variable length in a heap
without a checksum, and loops forever on some damaged heaps. Traces have no such strings, and none are read.
"""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np


def put_text(item: h5py.HLObject, name: str, text: str) -> None:
    """Set a text attribute of a file, group or dataset."""
    raw = text.encode("utf-8")
    item.attrs.create(name, np.array(raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw)))))


def get_attribute(item: h5py.HLObject, name: str) -> Any:
    """Return an attribute as text, a number or an array.

    Raises:
        KeyError: There is no attribute of this name.
        ValueError: The attribute is of a kind that traces do not have.
    """
    # h5py's low-level interface opens the attribute once; `item.attrs` would open it several times.
    raw_name = name.encode("utf-8", "surrogateescape")
    if not h5py.h5a.exists(item.id, raw_name):
        raise KeyError(f"it has no attribute {name}")
    attribute = h5py.h5a.open(item.id, raw_name)
    kind = attribute.get_type()
    if kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING) or (
        kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()
    ):
        raise ValueError(f"the attribute {name} is not of a kind that traces have")
    if attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return item.attrs[name]
    values = np.empty(attribute.shape, attribute.dtype)
    attribute.read(values)
    value = values[()]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if isinstance(value, np.generic) else value


def get_attributes(item: h5py.HLObject) -> dict[str, Any]:
    """Return all attributes of a file, group or dataset."""
    return {name: get_attribute(item, name) for name in item.attrs}


# What a group of parameters says in numbers, or leaves open.
NUMBERS_OF_GROUPS = ("lr", "momentum", "dampening", "weight_decay")


def read_metadata(file: h5py.File) -> dict[str, Any]:
    """Return the root attributes of a trace, with the JSON in them decoded and without control characters.

    Raises:
        ValueError: An attribute is of a kind that traces do not have.
    """
    found: dict[str, Any] = {}
    for name, value in get_attributes(file).items():
        if not isinstance(value, (str, int, float)):
            raise ValueError(f"the attribute {printable(name)} is neither a text nor a number")
        # The user's own texts may have several lines.
        lines = "\n\t" if name == "user_metadata" else ""
        found[printable(name)] = _all_printable(_from_json(value), lines)
    groups = found.get("optimizer_groups", [])
    if not (isinstance(groups, list) and all(isinstance(group, dict) for group in groups)):
        raise ValueError("optimizer_groups is not a list of groups")
    for group in groups:
        for name in NUMBERS_OF_GROUPS:
            if not isinstance(group.get(name), (int, float, type(None))):
                raise ValueError(f"{name} of optimizer_groups is no number")
    if not isinstance(found.get("user_metadata", {}), (dict, type(None))):
        raise ValueError("user_metadata is no object")
    return found


def probe_count(metadata: Mapping[str, Any]) -> int:
    """Return how many probes a run is measured on, by what its trace says of itself; 0 for each step's own loss."""
    probes = metadata.get("probes")
    if isinstance(probes, int):
        return probes
    # Until format 1.2, only a text said so.
    match = re.match(r"mean of (\d{1,6}) probe losses", str(metadata.get("objective")))
    return int(match[1]) if match else 0


def printable(text: str, kept: str = "") -> str:
    """Return a text with control characters and bidirectional controls replaced by escapes, as terminals obey them.

    Args:
        text: The text.
        kept: Control characters that are not replaced.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char in kept or not _is_control(char) else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _is_control(char: str) -> bool:
    # Categories of control characters, surrogates, and separators of lines and paragraphs.
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _TURNING


# Bidirectional overrides, embeddings and isolates.
_TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})


def _all_printable(value: Any, kept: str) -> Any:
    if isinstance(value, str):
        return printable(value, kept)
    if isinstance(value, list):
        return [_all_printable(item, kept) for item in value]
    if isinstance(value, dict):
        return {printable(name, kept): _all_printable(item, kept) for name, item in value.items()}
    return value


def _from_json(value: Any) -> Any:
    """Return the decoded value of a text that is a JSON object or list, and any other value unchanged."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
    return value
