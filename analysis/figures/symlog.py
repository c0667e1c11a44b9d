"""An axis that is linear from -1 to 1 and logarithmic beyond: a collapse runs through decades, of either sign."""

import math
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

SCALE: dict[str, Any] = {"base": 10, "linthresh": 1, "linscale": 0.6}
TRANSFORM = SymmetricalLogTransform(**SCALE)
WIDE = 1e3


def is_wide(values: Any) -> bool:
    """Do values reach beyond 1000, while most are less than a thousandth of the largest?"""
    finite = np.abs(values[np.isfinite(values)])
    return bool(finite.size and finite.max() > WIDE and np.median(finite) < finite.max() / WIDE)


def limit(axis: Axis, values: Any, small: bool) -> tuple[float, float]:
    """Room for these values and for -1 to 1. Sets ticks at 0 and at powers of ten: on each side as many as there is
    room for, at most three.
    """
    low, high = min(float(values.min()), -1.0), max(float(values.max()), 1.0)
    start, end = TRANSFORM.transform(np.array([low, high]))
    spare = 0.06 * (end - start)
    low, high = TRANSFORM.inverted().transform(np.array([start - spare, end + spare]))
    decades = np.arange(math.floor(math.log10(max(-low, high))) + 1)
    room = int(axis.get_tick_space())
    a_side = 1 if small else min(max((room - 1) // 2, 1), 3)
    decades = decades[-1:] if a_side == 1 else decades[:: math.ceil(len(decades) / a_side)]
    marks = [0.0, *(sign * 10.0**n for n in decades for sign in (-1, 1) if low <= sign * 10.0**n <= high)]
    if room <= 2:
        marks = [min(marks), max(marks)] if room == 2 else [max(marks, key=abs)]
    axis.set_major_locator(FixedLocator(sorted(marks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(tick))
    return low, high


def tick(value: float, _: int) -> str:
    """A tick's label: plain, and from ten thousand on a power of ten."""
    exponent = math.log10(abs(value)) if value else 0.0
    if exponent < 4 or abs(exponent - round(exponent)) > 1e-9:
        return f"{value:g}".replace("-", "−")
    return f"${'−' if value < 0 else ''}10^{{{exponent:.0f}}}$"
