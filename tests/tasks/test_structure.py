"""The check of a checkpoint's structure, against type hints and against examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest
import torch
from torch import Tensor

from lsmooth.tasks.structure import StructureError, check_hint, check_like


@dataclass
class Point:
    x: float
    y: float = 0.0


class Named(TypedDict):
    name: str


class Entry(Named, total=False):
    points: Sequence[Point]


GOOD = [
    (int, 3),
    (int, -(2**63)),
    (float, 3),
    (float, float("nan")),
    (bool, True),
    (str, ""),
    (Any, object()),
    (Tensor, torch.ones(2)),
    (int | None, None),
    (Literal["paper", "small"], "small"),
    (tuple[float, ...], [0.9, 1]),
    (Sequence[int], ()),
    (Mapping[str, int], {"a": 1}),
    (Mapping[int, Any], {3: "x"}),
    (Point, {"x": 1.0}),
    (Entry, {"name": "n", "points": [{"x": 1, "y": 2}]}),
]
BAD = [
    (int, True, "it is not"),
    (int, 2**63, "it is not"),
    (int, 1.0, "it is not"),
    (float, True, "it is not"),
    (float, "1", "it is not"),
    (bool, 1, "it is not"),
    (str, b"x", "it is not"),
    (Tensor, [1.0], "it is not"),
    (int | None, "x", "it is not"),
    (Literal["paper", "small"], "large", "it is not"),
    (Literal["paper", "small"], [], "it is not"),
    (tuple[float, ...], [0.9, None], r"it\[1\] is not"),
    (Sequence[int], "12", "it is not"),
    (Mapping[str, int], {1: 1}, "a key of it is not"),
    (Mapping[str, int], {"a": "b"}, r"it\[a\] is not"),
    (Mapping[str, int], [], "it is not"),
    (Point, {"y": 1.0}, "it has no entry x"),
    (Point, {"x": 1.0, "z": 1.0}, "it has an entry z that is not known"),
    (Point, Point(1.0), "it is not"),
    (Entry, {"points": []}, "it has no entry name"),
    (Entry, {"name": "n", "points": [{"x": "far"}]}, r"it\[points\]\[0\]\[x\] is not"),
    (Entry, {"name": "n", "\x1b[31m" + 80 * "x": 1}, r"it has an entry \?\[31mx{50,}\.\.\. that is not known"),
]


@pytest.mark.parametrize(("hint", "value"), GOOD)
def test_values_of_their_kind(hint, value):
    check_hint(value, hint, "it")


@pytest.mark.parametrize(("hint", "value", "sentence"), BAD)
def test_values_of_another_kind_are_named(hint, value, sentence):
    with pytest.raises(StructureError, match=f"^{sentence}"):
        check_hint(value, hint, "it")


EXAMPLE = {"a": torch.zeros(2, 3), "b": [1, (torch.zeros((), dtype=torch.int64), None)]}


def test_what_is_built_alike():
    check_like({"b": (5, [torch.ones((), dtype=torch.int64), None]), "a": torch.ones(2, 3)}, EXAMPLE, "it")
    half = {"a": torch.ones(4, 3).bfloat16(), "b": EXAMPLE["b"]}
    check_like(half, EXAMPLE, "it", exact=False)
    with pytest.raises(StructureError, match=r"it\[a\] is of torch.bfloat16, not torch.float32"):
        check_like(half, EXAMPLE, "it")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({}, "it is not"),
        ({**EXAMPLE, "c": 1}, "it is not"),
        ({**EXAMPLE, "a": torch.ones(2)}, r"it\[a\] has shape \(2,\), not \(2, 3\)"),
        ({**EXAMPLE, "a": torch.ones(2, 3).to_sparse()}, r"it\[a\] is not a plain tensor"),
        ({**EXAMPLE, "a": torch.ones(2, 3, dtype=torch.int64)}, r"it\[a\] is of torch.int64"),
        ({**EXAMPLE, "b": [1]}, r"it\[b\] is not"),
        ({**EXAMPLE, "b": [True, EXAMPLE["b"][1]]}, r"it\[b\]\[0\] is not"),
        ({**EXAMPLE, "b": [1, (EXAMPLE["b"][1][0], 0)]}, r"it\[b\]\[1\]\[1\] is not"),
    ],
)
@pytest.mark.parametrize("exact", [True, False])
def test_what_is_built_in_another_way_is_named(value, sentence, exact):
    with pytest.raises(StructureError, match=f"^{sentence}"):
        check_like(value, EXAMPLE, "it", exact=exact)
