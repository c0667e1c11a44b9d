"""What the figures of a quantity against step share: curve, band, legend entry, cross where it diverged, note."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import style
from analysis.load import census
from analysis.statistics import Curve, set_apart

Places = dict[tuple[str, float], tuple[int, int]]
LINE: dict[str, Any] = {"linewidth": 1.6, "markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.4}
DIVERGED: dict[str, Any] = {"color": "0.2", "marker": "x", "markersize": 4.5, "linestyle": ""}


def places(found: Sequence[Curve]) -> Places:
    """(loss, beta) -> (which of its loss's betas, of how many): what sets a curve's shade."""
    betas: dict[str, list[float]] = {}
    for curve in found:
        known = betas.setdefault(curve.loss, [])
        if curve.beta not in known:
            known.append(curve.beta)
    return {(loss, beta): (i, len(known)) for loss, known in betas.items() for i, beta in enumerate(sorted(known))}


def name(curve: Curve) -> str:
    """Such as `DPO β = 0.1`."""
    return style.loss_name(curve.loss) + ("" if math.isnan(curve.beta) else f" β = {curve.beta:g}")


def legend(found: Iterable[Curve], place: Places) -> list[Line2D]:
    """One entry per loss and beta, whatever the number of panels."""
    entries = {}
    for curve in found:
        colour, marker = style.look(curve.loss)
        shade = style.shade(colour, *place[curve.loss, curve.beta])
        entries[curve.loss, curve.beta] = Line2D([], [], color=shade, marker=marker, label=name(curve), **LINE)
    return list(entries.values())


def diverged_key() -> Line2D:
    """The legend entry of the crosses."""
    return Line2D([], [], **DIVERGED, label="diverged here")


def draw_curve(ax: Axes, frame: pd.DataFrame, curve: Curve, place: Places, turn: tuple[int, int]) -> None:
    """`frame` has step, mean, low, high. `turn` (this curve, of how many) sets its markers off from the others'."""
    colour, marker = style.look(curve.loss)
    shade = style.shade(colour, *place[curve.loss, curve.beta])
    every = style.sparse(len(frame), *turn)
    ax.plot(frame["step"], frame["mean"], color=shade, marker=marker, markevery=every, zorder=3, **LINE)
    if frame["low"].notna().any():
        ax.fill_between(frame["step"], frame["low"], frame["high"], color=shade, alpha=0.3, linewidth=0, zorder=1.8)


def draw_diverged(ax: Axes, frame: pd.DataFrame, curve: Curve, place: Places, stopped_at: float) -> None:
    """A run that diverged: thin and behind the others, and a cross where it stopped.

    The axis is already limited to what the other runs need; where this one has left it, the cross sits on its edge.
    """
    colour, _ = style.look(curve.loss)
    shade = style.shade(colour, *place[curve.loss, curve.beta])
    low, high = ax.get_ylim()
    ax.plot(frame["step"], frame["mean"], color=shade, linewidth=0.6, alpha=0.5, zorder=1.9)
    finite = frame[np.isfinite(frame["mean"])]
    if not finite.empty:
        edge = 0.02 * (high - low)
        y = float(np.clip(finite["mean"].iloc[-1], low + edge, high - edge))
        x = finite["step"].iloc[-1] if math.isnan(stopped_at) else stopped_at
        ax.plot(x, y, zorder=5, clip_on=False, **DIVERGED)
    ax.set_ylim(low, high)


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
