"""pi(rejected) against step. DPO's falls without end, IPO's stops.

The history holds natural logarithms, down to -2000 nats and below, where exp is 0. The axis is therefore linear in
log10 pi, with ticks written as probabilities; nothing is exponentiated.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from analysis.figures import draw as d
from analysis.figures import looks, style
from analysis.statistics import Curve, curves, over_seeds, set_apart

COLUMN = "log_pi/rejected"
TOGETHER = 4  # so many losses share a panel; more get one each


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. The mean over seeds is that of log pi: a geometric mean of pi."""
    found = curves(runs)
    if not found:
        raise ValueError("no run has a history to draw")
    each_its_panel = len({curve.loss for curve in found}) > TOGETHER
    panels: dict[str, list[Curve]] = {}
    for curve in found:
        loss = looks.loss_name(curve.loss) if each_its_panel else ""
        panels.setdefault(", ".join(part for part in (loss, curve.setting) if part), []).append(curve)
    look = looks.of_curves(found)
    stops = runs["stopped_at"].astype(float).to_dict()
    parts = {curve: set_apart(runs, curve) for curve in found}
    frames = {
        part: _log10(over_seeds(history, part, COLUMN))
        for steady, blown in parts.values()
        for part in (steady, *blown)
        if part
    }
    calm = [frames[steady] for steady, _ in parts.values() if steady] or list(frames.values())
    keys = [d.diverged_key()] if any(blown for _, blown in parts.values()) else []
    legends = [d.legend(found, look), keys]
    note = d.note_on_runs(runs, found, "log π")
    with style.sheet(list(panels), "step (optimiser updates)", "π(rejected)", legends, note, 52.0) as (figure, axes):
        for ax, members in zip(axes, panels.values(), strict=True):
            style.frame_y(ax, [frame[["mean", "low", "high"]] for frame in calm])
            _probability_ticks(ax)
            for nth, curve in enumerate(members):
                steady, blown = parts[curve]
                if steady:
                    d.draw_curve(ax, frames[steady], look[curve.loss, curve.beta], (nth, len(members)))
                for run in blown:
                    d.draw_diverged(ax, frames[run], look[curve.loss, curve.beta], stops[run.ids[0]])
    return figure


def _log10(frame: pd.DataFrame) -> pd.DataFrame:
    """Nats -> powers of ten."""
    return frame.assign(**{column: frame[column] / math.log(10) for column in ("mean", "low", "high")})


def _probability_ticks(ax: Axes) -> None:
    """Label an axis of log10 pi with probabilities: whole powers of ten, or 1-2-5 steps where it spans few of them."""
    low, high = ax.get_ylim()
    if high - low >= 3:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 3, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "1" if y == 0 else f"$10^{{{y:.0f}}}$"))
        return
    digits = (1, 2, 5) if high - low > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    ticks = [decade + math.log10(digit) for decade in decades for digit in digits]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) >= 2:
        ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _probability(y)))


def _probability(y: float) -> str:
    """log10 pi -> text, exactly as far as two figures go."""
    exponent = math.floor(y + 1e-9)
    digit = np.format_float_positional(round(10 ** (y - exponent), 2), trim="-")
    if -3 <= exponent <= 0:
        return f"{float(digit) * 10.0**exponent:.3g}"
    return f"$10^{{{exponent}}}$" if digit == "1" else f"{digit}$\\times10^{{{exponent}}}$"
