"""The weight |dL/dh| with which a pair pulls at the policy, against its margin: why some losses stop and others do not.

Closed forms, for one pair of one-token responses. A weight that reaches zero ends training there; one that only decays
lets the margin grow for ever. Marks: the margin at which a run of the sweep ended.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis import slopes
from analysis.figures import draw as d
from analysis.figures import looks
from analysis.figures.looks import Look
from analysis.figures.sheet import Panel, sheet
from analysis.passes import at_end
from analysis.statistics import Curve
from analysis.sweep import as_dicts, census, with_columns

FAMILY = {  # the losses that differ, with the defaults of conf/loss
    "dpo": {}, "ipo": {}, "hinge": {}, "exp": {}, "probit": {}, "cdpo": {"epsilon": 0.1}, "robust": {"epsilon": 0.1},
    "exo": {"epsilon": 1e-3}, "discopop": {"tau": 0.05}, "simpo": {"gamma": 0.5},
    "beta_dpo": {"alpha": 0.6, "mean_margin": 0.0}, "distill": {"score_gap": 1.0},
}  # fmt: skip
FAMILY_BETAS = (0.1, 0.5)
DECADES = 6  # of the y axis at most
POINTS = 600
Weights = Mapping[tuple[str, float], Mapping[str, float]]  # (loss, beta) -> settings


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure, with the losses, betas and settings of the sweep's runs."""
    rows = {run["id"]: run for run in as_dicts(with_columns(runs, "margin"))}
    reasons = {id: slopes.why_no_weight(run) for id, run in rows.items()}
    known = runs.loc[[id for id, why in reasons.items() if not why]]
    if known.empty:
        raise d.NothingToDraw(
            "no run has a margin whose loss has a closed form: "
            + ("; ".join(sorted({*reasons.values()})) or "no margin in the history")
        )
    drawn = d.material(known, history, "margin")
    ends = at_end(known, history, ["margin"])["margin"]
    weights = {(c.loss, c.beta): slopes.settings_of(rows[c.ids[0]]) for c in drawn.found}
    drawn_ends = {c: [ends[run] for run in c.ids if np.isfinite(ends[run])] for c in drawn.found}
    lacking = len(with_columns(runs)) - len(known)
    said = f"{census(runs)}" + (f"; {lacking} without a closed form, not shown" if lacking else "") + drawn.lacking
    return _figure(weights, drawn.look, drawn.found, drawn_ends, f"{said}. A mark is a run's end, one seed.")


def of_theory() -> Figure:
    """The same without a sweep: the family at two betas."""
    found = [Curve(loss, beta, "", ()) for loss in FAMILY for beta in FAMILY_BETAS]
    weights = {(c.loss, c.beta): {"beta": c.beta, **FAMILY[c.loss]} for c in found}
    return _figure(weights, looks.of_curves(found), found, {}, "")


def _figure(
    weights: Weights, look: d.Looks, found: Sequence[Curve], ends: Mapping[Curve, Sequence[float]], note: str
) -> Figure:
    together = len({curve.loss for curve in found}) <= d.TOGETHER
    panels: dict[str, list[Curve]] = {}
    for curve in found:
        panels.setdefault("" if together else looks.loss_name(curve.loss), []).append(curve)
    low, high, outside = _range(np.array([h for own in ends.values() for h in own]))
    h = np.linspace(low, high, POINTS)
    lines = {key: _with_zeros(key[0], h, settings) for key, settings in weights.items()}
    at_start = {key: float(slopes.weight(key[0], 0.0, settings)) for key, settings in weights.items()}
    top = max(float(np.nanmax(line)) for line in lines.values())
    at_ends = [float(w) for c in ends for w in slopes.weight(c.loss, np.array(ends[c]), weights[c.loss, c.beta]) if w]
    bottom = max(min([*at_start.values(), *(2 * w for w in at_ends)]) / 10, top * 10.0**-DECADES)
    entries = {}
    for curve in found:
        colour, marker = look[curve.loss, curve.beta]
        label = d.name(curve) if together else ("no β" if curve.beta != curve.beta else f"β = {curve.beta:g}")
        colour = colour if together else (0.25, 0.25, 0.25)
        entries[label] = Line2D([], [], color=colour, marker=marker if together else "", linewidth=d.WIDTH, label=label,
                                **d.MARKER)  # fmt: skip
    betas = sorted({curve.beta for curve in found})
    if not together:
        shades = {f"β = {beta:g}": looks.shade((0.25, 0.25, 0.25), i, len(betas)) for i, beta in enumerate(betas)}
        for label, line in entries.items():
            line.set_color(shades.get(label, (0.25, 0.25, 0.25)))
    marks = [Line2D([], [], color="0.25", marker="o", linestyle="", label="a run's end", **d.MARKER)] if ends else []
    note += " One pair of one-token responses. A dip to the axis is a zero."
    if outside:
        note += f" {outside} runs ended outside the axis."
    panel = Panel("|dL/dh| (1/nat)", 46.0)
    with sheet([*panels], "margin h (nats)", [panel], [[*entries.values()], marks], note.strip()) as on:
        for ax, members in zip(on.axes, panels.values(), strict=True):
            _limit(ax, bottom, 2 * top)
            for nth, key in enumerate(dict.fromkeys((c.loss, c.beta) for c in members)):
                _line(ax, h, lines[key], look[key], (nth, len(members)), marked=not ends)
            for curve in members:
                _marks(ax, ends.get(curve, ()), weights[curve.loss, curve.beta], curve, look[curve.loss, curve.beta])
        on.axes[0].set_xlim(low, high)
        on.axes[0].xaxis.set_major_formatter(FuncFormatter(d.plain))
        on.share_y(on.axes)
    return on.figure


def _range(ends: Any) -> tuple[float, float, int]:
    """Of the margins, from below 0 to beyond all but the farthest ends; and how many ends are not in it."""
    low, high = -3.0, 10.0
    if len(ends):
        first, third = np.quantile(ends, [0.25, 0.75])
        reach = 3 * (third - first) + 5
        kept = ends[(ends > first - reach) & (ends < third + reach)]
        low, high = min(-2.0, 1.1 * kept.min()), max(5.0, 1.1 * kept.max())
    return low, high, int(((ends < low) | (ends > high)).sum())


def _with_zeros(loss: str, h: Any, settings: Mapping[str, float]) -> Any:
    """|dL/dh| on the grid, 0 at the point nearest to each change of sign of dL/dh."""
    slope = slopes.SLOPES[loss](h, **settings)
    line = slopes.weight(loss, h, settings)
    before = np.flatnonzero(np.sign(slope[:-1]) * np.sign(slope[1:]) < 0)
    line[np.where(line[before] < line[before + 1], before, before + 1)] = 0.0
    return line


def _limit(ax: Axes, bottom: float, top: float) -> None:
    ax.set_yscale("log")
    ax.set_ylim(bottom, top)
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_minor_locator(NullLocator())


def _line(ax: Axes, h: Any, line: Any, look: Look, turn: tuple[int, int], marked: bool) -> None:
    shown = np.where(line > 0, line, 1e-300)  # a zero is a fall to the axis, not a gap
    ax.plot(h, shown, color=look.colour, linewidth=d.WIDTH, zorder=3)
    if marked:
        at = [int((i + (turn[0] + 0.5) / turn[1]) * len(h) / 5) for i in range(5)]
        ax.plot(h[at], shown[at], color=look.colour, marker=look.marker, linestyle="", zorder=3.1, **d.MARKER)


def _marks(ax: Axes, ends: Sequence[float], settings: Mapping[str, float], curve: Curve, look: Look) -> None:
    """Where runs ended; one whose weight is below the axis sits on it."""
    if not ends:
        return
    bottom, top = ax.get_ylim()
    at = slopes.weight(curve.loss, np.array(ends), settings).clip(bottom * 1.1, top)
    marker = {**d.MARKER, "markeredgecolor": "black"}
    ax.plot(ends, at, color=look.colour, marker=look.marker, linestyle="", zorder=5, clip_on=True, **marker)
