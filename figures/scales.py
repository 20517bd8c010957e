"""Logarithmic axes whose ticks stay few and legible, from a factor of 1.01 to fifty decades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.ticker import Formatter, FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Which = Literal["x", "y"]

# Without a value to show, an axis still needs limits.
_EMPTY = (0.1, 10.0)


class LogTicks(Locator):
    """Major ticks of a logarithmic axis: whole decades, or 1-2-5, or evenly spaced values where it spans little.

    Args:
        most: Largest number of ticks; it also sets the smallest distance between two of them.
    """

    def __init__(self, most: int = 5) -> None:
        self._most = max(2, most)
        self._even = MaxNLocator(nbins=self._most, steps=[1, 2, 2.5, 5, 10])

    def __call__(self) -> Sequence[float]:
        """Return the ticks between the axis's limits."""
        axis: Any = self.axis
        return self.tick_values(*axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks between two positive values."""
        low, high = sorted((vmin, vmax))
        if not (low > 0 and math.isfinite(high)):
            return []
        decades = math.log10(high / low)
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        stride = max(1, math.ceil(decades / self._most))
        # Anchored at 10^0, so that panels with different limits have ticks in common.
        whole = [10.0**k for k in range(first, last + 1) if k % stride == 0]
        if len(whole) >= 2:
            return whole
        if last > first:
            return [10.0**first, 10.0**last]
        fine = [
            float(f"{digit}e{k}")
            for k in range(first - 1, last + 1)
            for digit in (1, 2, 5)
            if low * (1 - 1e-9) <= digit * 10.0**k <= high * (1 + 1e-9)
        ]
        even = [float(tick) for tick in self._even.tick_values(low, high) if low <= tick <= high]
        for ticks in (fine, even):
            apart = self._apart(ticks, decades)
            if len(apart) >= 2:
                return apart
        # One number alone says nothing of the scale.
        most = max(fine, even, key=len)
        return [most[0], most[-1]] if len(most) >= 2 else most

    def _apart(self, ticks: list[float], decades: float) -> list[float]:
        """Leave out ticks that are too close to the one before; labels with a power of ten need twice the distance."""
        least = decades / self._most * (0.8 if ticks and _all_short(ticks) else 1.6)
        kept: list[float] = []
        for tick in ticks:
            if not kept or math.log10(tick / kept[-1]) >= least:
                kept.append(tick)
        return kept


def _all_short(values: Sequence[float]) -> bool:
    """Return whether all ticks can be labelled by short plain numbers."""
    return min(values) >= 0.009 and max(values) < 1e4


def _all_decades(values: Sequence[float]) -> bool:
    """Return whether all values are whole powers of ten."""
    return all(abs(math.log10(value) - round(math.log10(value))) < 1e-9 for value in values)


class LogLabels(Formatter):
    """Labels of a logarithmic axis: plain numbers where all of them are short, powers of ten otherwise.

    Args:
        alike: Whether whole decades are written as powers of ten where the other axis needs powers.
    """

    def __init__(self, alike: bool = False) -> None:
        self._alike = alike

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a value that stands alone, such as the one under the mouse."""
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the labels of all ticks of an axis."""
        if len(values) and _all_short(values) and not (self._alike and _all_decades(values) and self._beside_powers()):
            return [f"{value:.6g}" for value in values]
        return [power_of_ten(value) for value in values]

    def _beside_powers(self) -> bool:
        """Return whether the other axis of these Axes needs powers of ten."""
        axis: Any = self.axis
        ax = getattr(axis, "axes", None)
        if ax is None:
            return False
        other = ax.yaxis if axis is ax.xaxis else ax.xaxis
        ticks = other.get_majorticklocs() if isinstance(other.get_major_formatter(), LogLabels) else ()
        return len(ticks) > 0 and not _all_short(ticks)


def power_of_ten(value: float) -> str:
    """Return a positive number as mathematics, such as 2 x 10^-7."""
    exponent = math.floor(math.log10(value) + 1e-9)
    digits = f"{value / 10.0**exponent:.4g}"
    power = rf"10^{{{exponent}}}"
    return rf"${power}$" if digits == "1" else rf"${digits}\!\times\!{power}$"


def short_number(value: float, digits: int = 3) -> str:
    """Return a number that is not negative in two or three digits, as text or mathematics."""
    if value == 0 or 1e-2 <= value < 1e4:
        return f"{value:.{digits}g}" if value < 10**digits * 0.99 else f"{value:.0f}"
    return power_of_ten(float(f"{value:.{digits - 1}e}"))


def log_limits(*values: ArrayLike, margin: float = 0.06) -> tuple[float, float]:
    """Return limits that hold all positive finite values with a margin; a single value stands in a factor of 2."""
    found = [_positive(array) for array in values]
    known = np.concatenate(found) if found else np.empty(0)
    if not len(known):
        return _EMPTY
    low, high = float(known.min()), float(known.max())
    if high / low < 1.0001:
        return low / 2, high * 2
    reach = (high / low) ** margin
    return low / reach, high * reach


def linear_limits(*values: ArrayLike, margin: float = 0.06) -> tuple[float, float]:
    """Return limits that hold all finite values with a margin, from 0 where they are all on one side near it."""
    found = [array[np.isfinite(array)] for array in (np.asarray(value, dtype=np.float64).ravel() for value in values)]
    known = np.concatenate(found) if found else np.empty(0)
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    reach = (high - low) * margin or abs(high) * 0.5 or 0.5
    return low - reach, high + reach


def make_log(ax: Axes, which: Which, limits: tuple[float, float], most: int = 5) -> None:
    """Make an axis logarithmic, with limits and with ticks and labels from here."""
    ax.set(**{f"{which}scale": "log", f"{which}lim": limits})
    axis = _axis(ax, which)
    axis.set_major_locator(LogTicks(most))
    # In small panels plain numbers, which are narrower, leave more room for what is drawn.
    axis.set_major_formatter(LogLabels(alike=most > 3))
    decades = math.log10(limits[1] / limits[0])
    # Small ticks show that the axis is logarithmic; over many decades they would be a grey band.
    axis.set_minor_locator(LogLocator(subs="auto" if decades < 1.3 * most else (1.0,), numticks=50))
    axis.set_minor_formatter(NullFormatter())


def make_linear(ax: Axes, which: Which, limits: tuple[float, float], most: int = 5) -> None:
    """Give a linear axis its limits and few ticks."""
    ax.set(**{f"{which}lim": limits})
    axis = _axis(ax, which)
    axis.set_major_locator(MaxNLocator(nbins=max(2, most - 1), steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(ScalarFormatter(useMathText=True))


def make_steps(ax: Axes, which: Which, most: int = 5) -> None:
    """Label an axis of optimizer steps: whole numbers, in k and M where they are large."""
    axis = _axis(ax, which)
    axis.set_major_locator(MaxNLocator(nbins=max(1, most - 1), integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))


def count(value: float) -> str:
    """Return a count as a short text: 950, 20k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.6g}"


def percent(share: float) -> str:
    """Return a percentage; 0 % and 100 % mean exactly none and all."""
    if 0 < share < 1:
        return "<1 %"
    if 99 < share < 100:
        return ">99 %"
    return f"{share:.0f} %"


def _axis(ax: Axes, which: Which) -> Axis:
    return ax.xaxis if which == "x" else ax.yaxis


def _positive(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array) & (array > 0)]
