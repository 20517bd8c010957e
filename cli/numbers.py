"""The numbers that options take: finite, and within the bounds of PyTorch, NumPy and HDF5."""

from __future__ import annotations

from typing import Any

import click

# The product of two counts of this size still fits into the 64 bits of PyTorch, NumPy and HDF5.
LARGEST_COUNT = 10**9
# float32 holds no larger number.
LARGEST_FLOAT = 3.4e38


class Number(click.FloatRange):
    """A finite number of float32 in a range; click's own FloatRange lets "nan" pass."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or raise BadParameter with one sentence."""
        number = super().convert(value, param, ctx)
        if not abs(number) <= LARGEST_FLOAT:
            self.fail(f"{value} is not a finite number of float32.", param, ctx)
        return number

    def _describe_range(self) -> str:
        """Return the range for `--help`, "" where there is none; click's own would be "x<=None"."""
        return "" if self.min is None and self.max is None else super()._describe_range()


class Count(click.IntRange):
    """A whole number that PyTorch, NumPy and HDF5 can hold."""

    name = "count"

    def __init__(self, least: int = 1, most: int = LARGEST_COUNT) -> None:
        super().__init__(least, most)

    def _describe_range(self) -> str:
        """Return the range for `--help`, where the upper bound is of no interest."""
        return f"x>={self.min}"


# Every generator of PyTorch and NumPy takes these seeds, and so do the products that tasks make of them.
SEED = Count(0, 2**32 - 1)
