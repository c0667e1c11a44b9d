"""The phase plane: the log-ratio of the rejected response against that of the chosen one, a trajectory for each curve.

All start at the origin, where the policy is the reference. Down and right: the pair is learnt. Left of the vertical
line the chosen response is below its reference: displacement. Both axes are linear from -1 to 1 and logarithmic beyond,
for a collapse runs through decades; so lines of equal margin are curved.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures import draw as d
from analysis.figures import style
from analysis.figures.looks import Look
from analysis.figures.sheet import Panel, sheet
from analysis.figures.symlog import SCALE, TRANSFORM, limit
from analysis.sweep import census

CHOSEN, REJECTED = "log_ratios/chosen", "log_ratios/rejected"
ZERO: dict[str, Any] = {"color": "0.35", "linewidth": 0.7}
EQUAL: dict[str, Any] = {"color": "0.75", "linewidth": 0.5, "linestyle": (0, (1, 1.5))}


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. Nats on both axes. A trajectory is the mean over its seeds."""
    drawn = d.material(runs, history, "log-ratios", CHOSEN, REJECTED)
    loss_each = drawn.many_losses()
    panels = drawn.panels(loss_each)
    a, b = drawn.frames(CHOSEN), drawn.frames(REJECTED)
    entries, betas = d.legend(drawn, panels, loss_each)
    ends = Line2D([], [], color="0.25", marker="o", linestyle="", label="end of training", **d.MARKER)
    legends = [entries, [Line2D([], [], **EQUAL, label="equal margin (0, ±1, ±10, …)"), ends]]
    counts = sorted({len(steady.ids) for steady, _ in drawn.parts.values() if steady is not None}) or [1]
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = "One seed per curve." if counts[-1] == 1 else f"Mean over {n} seeds."
    blown = " Diverged runs are left out." if drawn.diverged else ""
    note = f"{census(runs)}{drawn.lacking}. {seeds}{blown}{betas}{drawn.by_pass}"
    steady = {curve: part for curve, (part, _) in drawn.parts.items() if part is not None}
    if not steady:
        raise d.NothingToDraw("every run diverged")
    paths = {curve: np.array([frame[steady[curve]]["mean"] for frame in (a, b)]) for curve in steady}
    x_label, y_label = "log-ratio a of the chosen response (nats)", "… b of the rejected (nats)"
    with sheet([*panels], x_label, [Panel(y_label, 48.0)], legends, note) as on:
        reach = np.concatenate([[[0.0, 0.0]], *(_most_of(path) for path in paths.values())])
        for ax, members in zip(on.axes, panels.values(), strict=True):
            ax.set_xscale("symlog", **SCALE)
            ax.set_yscale("symlog", **SCALE)
            ax.set_xlim(limit(ax.xaxis, reach[:, 0], on.small))
            ax.set_ylim(limit(ax.yaxis, reach[:, 1], on.small))
            _equal_margins(ax)
            ax.axhline(0, zorder=1.5, **ZERO)
            ax.axvline(0, zorder=1.5, **ZERO)
            for curve in members:
                if curve in paths:
                    _trajectory(ax, paths[curve], drawn.look[curve.loss, curve.beta])
        on.share_y(on.axes)
    return on.figure


def _most_of(path: Any) -> Any:
    """[2, T] -> [2, 2]: the range of 98 % of its steps in a and in b, so that one excursion does not set the scale."""
    there = path[:, np.isfinite(path).all(0)]
    return np.quantile(there, [0.01, 0.99], axis=1) if there.size else np.zeros((2, 2))


def _trajectory(ax: Axes, path: Any, look: Look) -> None:
    """[2, T]: the curve, and a marker where it ends."""
    x, y = path
    some = style.thinned(np.arange(len(x)), path.T)
    ax.plot(x[some], y[some], color=look.colour, linewidth=d.WIDTH, zorder=3)
    there = np.flatnonzero(np.isfinite(x) & np.isfinite(y))[-1:]
    ax.plot(x[there], y[there], color=look.colour, marker=look.marker, linestyle="", zorder=3.1, **d.MARKER)


def _equal_margins(ax: Axes) -> None:
    """Lines of equal margin, b = a - h, for h = 0 and the powers of ten of either sign."""
    ax.grid(False)
    across, up = ax.get_xlim(), ax.get_ylim()
    left, right = TRANSFORM.transform(np.array(across))
    a = TRANSFORM.inverted().transform(np.linspace(left, right, 200))
    largest = max(map(abs, (*across, *up)))
    for h in [0.0, *(sign * 10.0**n for n in range(math.ceil(math.log10(largest)) + 1) for sign in (-1, 1))]:
        ax.plot(a, a - h, zorder=1, **EQUAL)
    ax.set_xlim(across)
    ax.set_ylim(up)
