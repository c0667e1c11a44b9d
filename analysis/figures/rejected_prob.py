"""pi(rejected) against step. DPO's falls without end, IPO's stops.

Where a batch is not all of the data, pi(rejected) of a batch mostly shows which responses were drawn; then the ratio to
the reference, exp(b), takes its place: it starts at 1 for every response.

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
from analysis.figures.sheet import Panel, sheet
from analysis.sweep import with_columns

COLUMN, RATIO = "log_pi/rejected", "log_ratios/rejected"
LABELS = {COLUMN: "π(rejected)", RATIO: "π(rejected) / π_ref(rejected)"}


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. The mean over seeds is that of log pi: a geometric mean of pi."""
    column = RATIO if _batches_differ(runs) and len(with_columns(runs, RATIO)) else COLUMN
    drawn = d.material(runs, history, LABELS[column], column)
    loss_each = drawn.many_losses()
    panels = drawn.panels(loss_each)
    frames = {part: _log10(frame) for part, frame in drawn.frames(column).items()}
    entries, betas = d.legend(drawn, panels, loss_each)
    legends = [entries, [d.diverged_key()] if drawn.diverged else []]
    note = d.note_on_runs(drawn, "log π" if column == COLUMN else "the log-ratio b") + betas
    if column == RATIO:
        note += " Batches differ between updates: π itself would show which responses were drawn."
    with sheet([*panels], "step (optimiser updates)", [Panel(LABELS[column], 52.0)], legends, note) as on:
        d.share_y(on, on.axes, [*panels], drawn.wanted(panels.values(), frames))
        for ax, members in zip(on.axes, panels.values(), strict=True):
            probability_ticks(ax)
            drawn.draw(ax, members, frames)
    return on.figure


def _batches_differ(runs: pd.DataFrame) -> bool:
    """Is there a run whose batches are not all of its data?"""
    size = pd.to_numeric(runs["batch_size"], errors="coerce")  # "full" is none
    return bool((pd.to_numeric(runs["pairs"]) > size).any())


def _log10(frame: pd.DataFrame) -> pd.DataFrame:
    """Nats -> powers of ten."""
    return frame.assign(**{column: frame[column] / math.log(10) for column in ("mean", "low", "high")})


def probability_ticks(ax: Axes) -> None:
    """Label an axis of log10 pi with probabilities: whole powers of ten, or 1-2-5 steps where it spans few of them."""
    low, high = ax.get_ylim()
    room = ax.yaxis.get_tick_space()
    if high - low >= 3:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=min(6, room), integer=True, steps=[1, 2, 3, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "1" if y == 0 else f"$10^{{{y:.0f}}}$"))
        return
    finest = 1 if high - low > 0.7 else 0
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,))[finest:]:
        ticks = [decade + math.log10(digit) for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 2 <= len(ticks) <= room:
            ax.yaxis.set_major_locator(FixedLocator(ticks))
            break
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _probability(y)))


def _probability(y: float) -> str:
    """log10 pi -> text, exactly as far as two figures go."""
    exponent = math.floor(y + 1e-9)
    digit = np.format_float_positional(round(10 ** (y - exponent), 2), trim="-")
    if -3 <= exponent <= 0:
        return f"{float(digit) * 10.0**exponent:.3g}"
    return f"$10^{{{exponent}}}$" if digit == "1" else f"{digit}$\\times10^{{{exponent}}}$"
