"""What the figures of a quantity against step share: curve, band, legend entry, cross where it diverged, note."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.figures import looks, style
from analysis.load import census
from analysis.statistics import Curve, set_apart

Looks = Mapping[tuple[str, float], looks.Look]
WIDTH = 1.6
MARKER: dict[str, Any] = {"markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.4}
DIVERGED: dict[str, Any] = {"color": "0.2", "marker": "x", "markersize": 4.5, "linestyle": ""}
LOG_STEPS = SymmetricalLogTransform(base=10, linthresh=1, linscale=0.5)  # linear from 0 to 1, so that step 0 is there


def name(curve: Curve) -> str:
    """Such as `DPO β = 0.1`."""
    return looks.loss_name(curve.loss) + ("" if math.isnan(curve.beta) else f" β = {curve.beta:g}")


def legend(found: Iterable[Curve], look: Looks) -> list[Line2D]:
    """One entry per loss and beta, whatever the number of panels."""
    entries = {}
    for curve in found:
        colour, marker = look[curve.loss, curve.beta]
        label = name(curve)
        entries[label] = Line2D([], [], color=colour, marker=marker, linewidth=WIDTH, label=label, **MARKER)
    return list(entries.values())


def diverged_key() -> Line2D:
    """The legend entry of the crosses."""
    return Line2D([], [], **DIVERGED, label="diverged here")


def draw_curve(ax: Axes, frame: pd.DataFrame, look: looks.Look, turn: tuple[int, int], log_steps: bool = False) -> None:
    """`frame` has step, mean, low, high. `turn` (this curve, of how many) sets its markers off from the others'."""
    colour, marker = look
    _line(ax, frame, color=colour, linewidth=WIDTH, zorder=3)
    steps = frame["step"].to_numpy(dtype=float)
    marked = frame.iloc[style.sparse(LOG_STEPS.transform(steps) if log_steps else steps, *turn)]
    ax.plot(marked["step"], marked["mean"], color=colour, marker=marker, linewidth=0, zorder=3.1, **MARKER)
    if frame["low"].notna().any():
        ax.fill_between(frame["step"], frame["low"], frame["high"], color=colour, alpha=0.3, linewidth=0, zorder=1.8)


def draw_diverged(ax: Axes, frame: pd.DataFrame, look: looks.Look, stopped_at: float) -> None:
    """A run that diverged: thin and behind the others, and a cross where it stopped.

    The axis is already limited to what the other runs need; where this one has left it, the cross sits on its edge.
    """
    low, high = ax.get_ylim()
    _line(ax, frame, color=look.colour, linewidth=0.6, alpha=0.5, zorder=1.9)
    finite = frame[np.isfinite(frame["mean"])]
    if not finite.empty:
        edge = 0.02 * (high - low)
        y = float(np.clip(finite["mean"].iloc[-1], low + edge, high - edge))
        x = finite["step"].iloc[-1] if math.isnan(stopped_at) else stopped_at
        ax.plot(x, y, zorder=5, clip_on=False, **DIVERGED)
    ax.set_ylim(low, high)


def count_steps_in_tens(ax: Axes, last: int) -> None:
    """Make the step axis, which the panels of a sheet share, 0, 1, 10, 100, … (`LOG_STEPS`) up to the last step.

    Call it when all is drawn: seaborn takes points through the scale it finds and back, which costs their last digits.
    """
    ax.set_xscale("symlog", base=10, linthresh=1, linscale=0.5)
    start, end = LOG_STEPS.transform(np.array([0.0, max(last, 1)]))
    spare = 0.05 * (end - start)
    low, high = LOG_STEPS.inverted().transform(np.array([start - spare, end + spare]))
    ax.set_xlim(low, high)
    decades = [10**n for n in range(1 + int(math.log10(high)))]
    ax.xaxis.set_major_locator(FixedLocator([0, *decades]))
    ax.xaxis.set_minor_locator(FixedLocator([digit * decade for decade in decades for digit in range(2, 10)]))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda step, _: f"{step:.0f}" if step < 1e4 else f"$10^{{{math.log10(step):.0f}}}$")
    )


def _line(ax: Axes, frame: pd.DataFrame, **kwargs: Any) -> None:
    """The mean against step; what has no mean stays a gap (seaborn by itself would bridge it)."""
    x, y = frame["step"].to_numpy(dtype=float), frame["mean"].to_numpy(dtype=float)
    if np.isnan(y).all():  # seaborn fails on it
        return
    stretch = np.isnan(y).cumsum()
    sns.lineplot(x=x, y=y, units=stretch, estimator=None, errorbar=None, legend=False, ax=ax, **kwargs)


def note_on_runs(runs: pd.DataFrame, found: Sequence[Curve], quantity: str) -> str:
    """How many runs the figure shows, and what a line stands for: one run, or a mean over seeds and its interval."""
    parts = [set_apart(runs, curve) for curve in found]
    counts = sorted({len(steady.ids) for steady, _ in parts if steady is not None}) or [1]
    if counts[-1] == 1:
        note = "One seed per curve."
    else:
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        note = f"Line: mean of {quantity} over {n} seeds; band: its 95\N{NO-BREAK SPACE}% t interval."
    if any(steady and diverged for steady, diverged in parts):
        note += " Diverged runs are drawn singly, thin, and are not in the mean."
    return f"{census(runs)}. {note}"
