"""The margin h against step, a panel per loss, and over the measured lines the closed forms of one pair under SGD."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis import theory
from analysis.figures import draw as d
from analysis.figures import looks, style
from analysis.load import as_dicts
from analysis.statistics import Curve, curves, over_seeds, set_apart

COLUMN = "margin"
THEORY: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2.5))}
TARGET: dict[str, Any] = {"color": "0.35", "linewidth": 0.7, "linestyle": (0, (1, 1.5))}
EXACTNESS = {"dpo": "DPO gradient flow", "ipo": "IPO gradient descent"}


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. Margins in nats, never scaled by beta."""
    found = curves(runs)
    if not found:
        raise ValueError("no run has a history to draw")
    panels: dict[str, list[Curve]] = {}
    for curve in found:
        title = looks.loss_name(curve.loss) + (f", {curve.setting}" if curve.setting else "")
        panels.setdefault(title, []).append(curve)
    look = looks.of_curves(found)
    stops = runs["stopped_at"].astype(float).to_dict()
    parts = {curve: set_apart(runs, curve) for curve in found}
    lines = {curve: theory_over_seeds(runs, history, parts[curve][0] or curve)[0] for curve in found}
    targets = {curve: theory.target_line(as_dicts(runs.loc[[curve.ids[0]]])[0]) for curve in found}
    keys = _keys(lines, targets) + ([d.diverged_key()] if any(blown for _, blown in parts.values()) else [])
    legends = [d.legend(found, look), keys]
    note = f"{d.note_on_runs(runs, found, 'h')}{_note_on_theory(found, lines)}"
    x_label = "step (optimiser updates; log scale from 1)"
    with style.sheet(list(panels), x_label, "margin h (nats)", legends, note) as (figure, axes):
        for ax, members in zip(axes, panels.values(), strict=True):
            frames = {
                part: over_seeds(history, part, COLUMN)
                for curve in members
                for part in (parts[curve][0], *parts[curve][1])
                if part
            }
            calm = [frames[steady] for steady in (parts[curve][0] for curve in members) if steady]
            shown: list[npt.ArrayLike] = [frame[["mean", "low", "high"]].to_numpy() for frame in calm]
            shown += [line for line in (lines[curve] for curve in members) if line is not None]
            shown += [[0.0, targets[c]] for c in members if math.isfinite(targets[c])]  # from the start to the goal
            style.frame_y(ax, shown or [frame["mean"].to_numpy() for frame in frames.values()])
            for nth, curve in enumerate(members):
                (steady, blown), line = parts[curve], lines[curve]
                if steady:
                    d.draw_curve(ax, frames[steady], look[curve.loss, curve.beta], (nth, len(members)), log_steps=True)
                for run in blown:
                    d.draw_diverged(ax, frames[run], look[curve.loss, curve.beta], stops[run.ids[0]])
                if line is not None:
                    ax.plot(np.arange(len(line)), line, zorder=4, **THEORY)
                if math.isfinite(targets[curve]):
                    ax.axhline(targets[curve], zorder=1.5, **TARGET)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda h, _: f"{h:g}".replace("-", "−")))
        d.count_steps_in_tens(axes[0], last=int(history["step"].max()))
    return figure


def theory_over_seeds(runs: pd.DataFrame, history: pd.DataFrame, curve: Curve) -> tuple[theory.Array | None, str]:
    """The mean of the closed-form lines of a curve's runs, over its longest run; or None and the reason."""
    rows = history[history["run"].isin(curve.ids)]
    starts = rows[rows["step"] == 0].set_index("run").loc[list(curve.ids)]
    t = np.arange(int(rows["step"].max()) + 1)
    pairs = zip(as_dicts(runs.loc[list(curve.ids)]), as_dicts(starts), strict=True)
    lines = [theory.margin_line(run, start, t) for run, start in pairs]
    reasons = dict.fromkeys(line.why_not for line in lines if line.why_not)
    if reasons:
        return None, "; ".join(reasons)
    return np.mean([line.margin for line in lines if line.margin is not None], axis=0), ""


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
    without = list(dict.fromkeys(_unbroken(d.name(curve)) for curve in found if lines[curve] is None))
    note = ""
    if with_line:
        kinds = ", ".join(EXACTNESS.get(loss, loss) for loss in with_line)
        note += f" Theory: {kinds}, one pair, K = |∇h|² as at step\N{NO-BREAK SPACE}0 (approximate if K drifts)."
    if without:
        names = ", ".join(without) if len(without) <= 3 else f"{len(without)} curves"
        note += f" No theory line: {names}."
    return note


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")
