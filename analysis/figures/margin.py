"""The margin h against step, a panel per loss, and over the measured lines the closed forms of one pair under SGD."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis import theory
from analysis.figures import draw as d
from analysis.figures import style
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import Curve
from analysis.sweep import as_dicts

COLUMN = "margin"
THEORY: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2.5))}
TARGET: dict[str, Any] = {"color": "0.35", "linewidth": 0.7, "linestyle": (0, (1, 1.5))}
EXACTNESS = {"dpo": "DPO gradient flow", "ipo": "IPO gradient descent"}


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. Margins in nats, never scaled by beta."""
    drawn = d.material(runs, history, "margin", COLUMN)
    panels = drawn.panels(loss_each=True)
    starts = first_rows(history)
    lines = {curve: theory_over_seeds(runs, starts, drawn.parts[curve][0] or curve)[0] for curve in drawn.found}
    targets = {curve: theory.target_line(as_dicts(runs.loc[[curve.ids[0]]])[0]) for curve in drawn.found}
    goals = {curve: [0.0, target] for curve, target in targets.items() if math.isfinite(target)}  # from start to goal
    beside = {c: [*([] if lines[c] is None else [lines[c]]), *([goals[c]] if c in goals else [])] for c in drawn.found}
    frames = drawn.frames(COLUMN)
    entries, betas = d.legend(drawn, panels, loss_each=True)
    legends = [entries, _keys(lines, targets) + ([d.diverged_key()] if drawn.diverged else [])]
    note = d.note_on_runs(drawn, "h") + betas + _note_on_theory(drawn.found, lines)
    x_label = "step (optimiser updates; log scale from 1)"
    with sheet([*panels], x_label, [Panel("margin h (nats)", 42.0)], legends, note) as on:
        if on.small:
            d.share_y(on, on.axes, [*panels], drawn.wanted(panels.values(), frames, beside))
        for ax, members in zip(on.axes, panels.values(), strict=True):
            if not on.small:
                style.frame_y(ax, drawn.wanted([members], frames, beside)[0])
            drawn.draw(ax, members, frames, log_steps=True)
            for curve in members:
                line = lines[curve]
                if line is not None:
                    ax.plot(np.arange(len(line)), line, zorder=4, **THEORY)
                if math.isfinite(targets[curve]):
                    ax.axhline(targets[curve], zorder=1.5, **TARGET)
            ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        d.count_steps_in_tens(on.axes[0], last=int(history["step"].max()))
    return on.figure


def first_rows(history: pd.DataFrame) -> pd.DataFrame:
    """Row 0 of every run, by id."""
    return history[history["step"] == 0].set_index("run")


def theory_over_seeds(
    runs: pd.DataFrame, starts: pd.DataFrame, curve: Curve, metric: str = COLUMN
) -> tuple[theory.Array | None, str]:
    """The mean of the closed-form lines of a curve's runs, over its longest run; or None and the reason.

    starts: `first_rows` of the history. metric: one of `theory.FROM_MARGIN`.
    """
    own = runs.loc[list(curve.ids)]
    t = np.arange(int(own["rows"].max()))
    pairs = zip(as_dicts(own), as_dicts(starts.loc[list(curve.ids)]), strict=True)
    lines = [theory.metric_line(metric, run, start, t) for run, start in pairs]
    reasons = dict.fromkeys(why_not for _, why_not in lines if why_not)
    if reasons:
        return None, "; ".join(reasons)
    return np.mean([values for values, _ in lines if values is not None], axis=0), ""


def _keys(lines: Mapping[Curve, theory.Array | None], targets: Mapping[Curve, float]) -> list[Line2D]:
    """Legend entries for what is drawn beside the measured curves."""
    keys = []
    if any(line is not None for line in lines.values()):
        keys.append(Line2D([], [], **THEORY, label="theory, K from step 0"))
    if any(math.isfinite(target) for target in targets.values()):
        keys.append(Line2D([], [], **TARGET, label="IPO target 1/(2β)"))
    return keys


def _note_on_theory(found: Sequence[Curve], lines: Mapping[Curve, theory.Array | None]) -> str:
    """What the closed forms are, and which curves have none though others of their loss might."""
    with_line = dict.fromkeys(curve.loss for curve in found if lines[curve] is not None)
    without = list(dict.fromkeys(d.unbroken(d.name(curve)) for curve in found if lines[curve] is None))
    note = ""
    if with_line:
        kinds = ", ".join(EXACTNESS.get(loss, loss) for loss in with_line)
        note += f" Theory: {kinds}, one pair, K = |∇h|² as at step\N{NO-BREAK SPACE}0 (approximate if K drifts)."
    if without:
        names = ", ".join(without) if len(without) <= 3 else f"{len(without)} curves"
        note += f" No theory line: {names}."
    return note
