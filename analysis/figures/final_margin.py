"""The margin at the end against beta: IPO's is 1/(2 beta), DPO's has no end."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis import collapse, theory
from analysis.figures import draw as d
from analysis.figures import looks
from analysis.figures.sheet import Panel, sheet
from analysis.passes import at_end
from analysis.sweep import as_dicts, census

COLUMN = "margin"
MOST_ARROWS, MOST_MARKERS = 12, 30  # of a loss
GROWING: dict[str, Any] = {"marker": r"$\uparrow$", "markersize": 6.0, "linestyle": "", "color": "0.2"}
TARGET: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2.5))}


def draw(runs: pd.DataFrame, history: pd.DataFrame, verdicts: pd.DataFrame | None = None) -> Figure:
    """`Sweep.runs`, `Sweep.history` and, if they are there already, `collapse.verdicts` of them -> the figure.

    Of finished runs, those whose margin is above 0: log axes. The margin is the mean over the last pass over the data.
    """
    drawn = d.material(runs, history, "margin", COLUMN, every_beta=True)
    last = at_end(runs[runs["rows"] > 0], history, [COLUMN])[COLUMN]
    judged = collapse.verdicts(runs.loc[list(last.index)], history) if verdicts is None else verdicts
    growing = judged["C2"].fillna(False).astype(bool)
    finished = runs.index[runs["state"] == "finished"]
    rows = [
        (curve, run, curve.beta, last[run], growing[run])
        for curve in drawn.found
        for run in curve.ids
        if run in finished and curve.beta > 0 and last[run] > 0
    ]
    if not rows:
        raise d.NothingToDraw("no finished run has a beta and a margin above 0")
    ends = pd.DataFrame(rows, columns=["curve", "run", "beta", "margin", "growing"])
    loss_each, there = drawn.many_losses(), {*ends["curve"]}
    panels = {title: [c for c in members if c in there] for title, members in drawn.panels(loss_each).items()}
    panels = {title: members for title, members in panels.items() if members}
    losses = list(dict.fromkeys(curve.loss for curve in ends["curve"]))
    base = looks.of_losses(losses)
    keys = [
        Line2D([], [], color=base[loss].colour, marker=base[loss].marker, linewidth=d.WIDTH,
               label=looks.loss_name(loss), **d.MARKER)
        for loss in losses
    ]  # fmt: skip
    targets = {
        curve: theory.target_line(as_dicts(runs.loc[[curve.ids[0]]])[0]) for curve in dict.fromkeys(ends["curve"])
    }
    beside = [Line2D([], [], **TARGET, label="1/(2β)")] if any(map(math.isfinite, targets.values())) else []
    if ends["growing"].any():
        beside.append(Line2D([], [], **GROWING, label="still growing: no bound in view"))
    n = sorted(ends.groupby("curve", sort=False).size().unique())
    several = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    seeds = "One seed a point." if n == [1] else f"Mean over {several} seeds; bar: the least to the largest."
    lacking = len(runs) - len(ends)
    left_out = f"; {lacking} not finished, without a β or below 0, not shown" if lacking else ""
    note = f"{census(runs)}{left_out}. {seeds}"
    with sheet([*panels], "β", [Panel("final margin h (nats)", 46.0)], [[] if loss_each else keys, beside], note) as on:
        for ax, members in zip(on.axes, panels.values(), strict=True):
            own = ends[[curve in members for curve in ends["curve"]]]
            goals = sorted({(curve.beta, targets[curve]) for curve in members if math.isfinite(targets[curve])})
            _limit(ax, ends["beta"], [*own["margin"], *(goal for _, goal in goals)])
            for loss in losses:
                _loss(ax, own[[curve.loss == loss for curve in own["curve"]]], base[loss])
            if goals:
                ax.plot(*zip(*goals, strict=True), zorder=2.5, **TARGET)
        _betas(on.axes, sorted(ends["beta"].unique()))
    return on.figure


def _limit(ax: Axes, betas: Any, margins: Any) -> None:
    """Log axes with room at the ends, above for an arrow. Set before anything is drawn: one point gives no range."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    (left, right), (low, high) = ((min(values), max(values)) for values in (betas, margins))
    x_spare, y_spare = max((right / left) ** 0.06, 1.1), max((high / low) ** 0.06, 1.1)
    ax.set_xlim(left / x_spare, right * x_spare)
    ax.set_ylim(low / y_spare, high * y_spare**3)


def _loss(ax: Axes, ends: pd.DataFrame, look: looks.Look) -> None:
    if ends.empty:
        return
    by_beta = ends.groupby("beta")["margin"].agg(["mean", "min", "max"])
    bars = np.array([by_beta["mean"] - by_beta["min"], by_beta["max"] - by_beta["mean"]])
    ax.errorbar(
        by_beta.index, by_beta["mean"], bars, color=look.colour, marker=look.marker, linewidth=d.WIDTH, elinewidth=0.8,
        capsize=2, zorder=3, markevery=max(1, len(by_beta) // MOST_MARKERS), **d.MARKER,
    )  # fmt: skip
    up = ends.groupby("beta")["growing"].any()
    upward = up.index[up]
    for beta in upward[d.spread(len(upward), MOST_ARROWS)]:
        ax.annotate(
            "", (beta, by_beta.loc[beta, "max"]), xytext=(0, 9), textcoords="offset points", zorder=2.9,
            arrowprops={"arrowstyle": "<-", "color": "0.2", "linewidth": 0.8, "shrinkB": 2.5},
        )  # fmt: skip


def _betas(axes: Sequence[Axes], betas: Sequence[float]) -> None:
    """A tick for each beta if they are few, else for each decade; plain numbers."""
    for ax in axes:
        low, high = ax.get_ylim()
        ax.xaxis.set_minor_formatter(NullFormatter())
        if len(betas) <= 6:
            ax.set_xticks(betas)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        narrow = LogLocator(subs=(1.0, 2.0, 5.0)) if high / low > 4 else MaxNLocator(4)
        ax.yaxis.set_major_locator(narrow if high / low < 30 else LogLocator())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(which="minor", length=0)
