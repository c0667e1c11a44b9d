"""The probability of every action of a tabular policy against step, a panel for each loss, beta and setting.

Azar et al. 2023 (arXiv 2310.12036), Figs. 1 and 2, show the learning curves of a policy so. Where an action falls below
one in a thousand the axis is logarithmic, and the mean over seeds is that of log pi; else it is linear.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis import distribution
from analysis.figures import draw as d
from analysis.figures import looks
from analysis.figures.rejected_prob import probability_ticks
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import Curve, over_seeds
from analysis.sweep import census, with_columns

MOST_ACTIONS = 7  # the palette's length
RARE = 1e-3
COLUMN = "log_pi"
# By action, not by loss: dark and light by turns, and a marker each, so that neighbours differ in grey too.
COLOURS = [sns.color_palette("colorblind")[i] for i in (0, 1, 2, 3, 9, 4, 5)]
MARKERS = "os^DvPX"


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. Of several prompts the mean of pi over them."""
    recorded = distribution.columns(history)
    tabular = runs[[any(column in names for column in recorded) for names in runs["columns"]]]
    if not recorded or with_columns(tabular).empty:
        raise d.NothingToDraw("no run has the distribution over actions (log_pi/<prompt>/<action>) in its history")
    drawn = d.material(tabular, history, "π")
    found = [(c, steady) for c, (steady, _) in drawn.parts.items() if steady]
    shown = [found[i] for i in d.spread(len(found), d.MOST_PANELS)]
    if not shown:
        raise d.NothingToDraw("every run diverged")
    actions = _actions(recorded)
    frames = {curve: _frames(history, part, actions) for curve, part in shown}
    log = min(float(f["mean"].min()) for own in frames.values() for f in own.values()) < math.log10(RARE)
    frames = {curve: {a: _axis(frame, log) for a, frame in own.items()} for curve, own in frames.items()}
    betas = {curve.beta for curve, _ in shown}
    one = betas.pop() if len(betas) == 1 else math.nan  # said once, in the note
    names = [d.name(curve) if math.isnan(one) else looks.loss_name(curve.loss) for curve, _ in shown]
    titles = [", ".join(filter(None, (name, curve.setting))) for name, (curve, _) in zip(names, shown, strict=True)]
    drawn_actions = list(actions)[:MOST_ACTIONS]
    keys = [
        Line2D([], [], color=COLOURS[i], marker=MARKERS[i], linewidth=d.WIDTH, label=f"action {a}", **d.MARKER)
        for i, a in enumerate(drawn_actions)
    ]  # fmt: skip
    counts = sorted({len(part.ids) for _, part in shown})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    mean = "log π" if log else "π"
    seeds = "One seed per curve." if counts[-1] == 1 else f"Mean of {mean} over {n} seeds; band: least to largest."
    notes = [f"{census(runs)}{_lacking(runs, tabular)}.", seeds]
    if len(shown) < len(found):
        notes.append(f"{len(shown)} of {len(found)} curves drawn.")
    if len(actions) > MOST_ACTIONS:
        notes.append(f"The first {MOST_ACTIONS} of {len(actions)} actions.")
    if not math.isnan(one):
        notes.append(f"β = {one:g} throughout.")
    if (prompts := max(map(len, actions.values()))) > 1:
        notes.append(f"Mean of π over {prompts} prompts.")
    if drawn.diverged:
        notes.append("Diverged runs are left out.")
    panel = Panel("π(action)", 34.0)
    with sheet(titles, "step (optimiser updates; log scale from 1)", [panel], [keys], " ".join(notes)) as on:
        values = [[[0.0], *(frame[["mean", "low", "high"]] for frame in own.values())] for own in frames.values()]
        if log:
            d.share_y(on, on.axes, titles, values)
        else:
            on.share_y(on.axes)
        for ax, (curve, _) in zip(on.axes, shown, strict=True):
            if log:
                probability_ticks(ax)
            else:
                ax.set_ylim(-0.05, 1.05)
                ax.yaxis.set_major_locator(FixedLocator([0.0, 0.5, 1.0]))
                ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
            _panel(ax, frames[curve], drawn_actions)
        d.count_steps_in_tens(on.axes[0], last=int(history["step"].max()))
    return on.figure


def _panel(ax: Axes, frames: dict[str, pd.DataFrame], actions: Sequence[str]) -> None:
    for nth, action in enumerate(actions):
        frame = frames.get(action)
        if frame is not None:
            d.draw_curve(ax, frame, looks.Look(COLOURS[nth], MARKERS[nth]), (nth, len(actions)), log_steps=True)


def _actions(columns: Sequence[str]) -> dict[str, list[str]]:
    """Action -> its column for every prompt."""
    found: dict[str, list[str]] = {}
    for column in columns:
        found.setdefault(column.split("/")[2], []).append(column)
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def _frames(history: pd.DataFrame, part: Curve, actions: dict[str, list[str]]) -> dict[str, pd.DataFrame]:
    """Action -> step, mean, low, high: of log10 pi over seeds."""
    own = history[history["run"].isin(part.ids)]
    frames = {}
    for action, columns in actions.items():
        logs = own[columns].dropna(axis=1, how="all").to_numpy(dtype=float)
        if not logs.size:
            continue
        log_mean = np.logaddexp.reduce(logs, axis=1) - math.log(logs.shape[1])
        frames[action] = _least_to_largest(own[["run", "step"]].assign(**{COLUMN: log_mean / math.log(10)}), part)
    return frames


def _least_to_largest(history: pd.DataFrame, part: Curve) -> pd.DataFrame:
    """A band that cannot leave what a probability may be, as an interval of the mean could."""
    frame: pd.DataFrame = over_seeds(history, part, COLUMN)
    if len(part.ids) > 1:
        by_step = history.groupby("step")[COLUMN]
        frame = frame.assign(low=by_step.min().to_numpy(), high=by_step.max().to_numpy())
    return frame


def _axis(frame: pd.DataFrame, log: bool) -> Any:
    """log10 pi as it is, or pi."""
    return frame if log else frame.assign(**{name: 10 ** frame[name] for name in ("mean", "low", "high")})


def _lacking(runs: pd.DataFrame, tabular: pd.DataFrame) -> str:
    lacking = len(with_columns(runs)) - len(with_columns(tabular))
    return f"; {lacking} without the distribution, not shown" if lacking else ""
