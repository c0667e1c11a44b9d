"""Held-out pairs against step: reward margin and accuracy, both log-ratios, and the KL of the policy's own answers.

Where both log-ratios fall, the margin grows while even the chosen response gets less likely: displacement.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.figures import draw as d
from analysis.figures import style
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import Curve, is_bounded
from analysis.sweep import REWARD_MODEL

MARGIN, ACCURACY = "eval/rewards/margins", "eval/rewards/accuracies"
CHOSEN, REJECTED = "eval/log_ratios/chosen", "eval/log_ratios/rejected"
KL, KL_SE = "eval/kl_k3", "eval/kl_k3_se"
PANELS = {  # by the column that has to be there
    MARGIN: Panel("reward margin", 30.0),
    ACCURACY: Panel("accuracy", 16.0),
    CHOSEN: Panel("log-ratios (nats)", 32.0),
    KL: Panel("KL (nats)", 26.0),
}
FIRST = (CHOSEN, KL, MARGIN, ACCURACY)  # where not all have room
ROOM = {4: 4, 12: 2}  # for up to so many cells: so many panels; one for more
DOTTED: Any = (0, (1, 1.1))  # of rejected responses
BAR: dict[str, Any] = {"fmt": "none", "elinewidth": 0.8, "capsize": 1.6, "capthick": 0.6, "zorder": 2.9}


def draw(runs: pd.DataFrame, evaluations: pd.DataFrame) -> Figure:
    """`Sweep.runs` and the rows of `beside_history.evaluations` -> the figure."""
    if evaluations.empty:
        raise d.NothingToDraw("no run was evaluated while it trained (evaluations.arrow)")
    drawn = d.material(runs, evaluations, "held-out rewards", MARGIN, ACCURACY, evaluated=True)
    loss_each = drawn.many_losses()
    cells = drawn.panels(loss_each)
    columns, left_out = _columns(drawn, len(cells))
    frames = {column: drawn.frames(column) for column in columns}
    errors = {curve: _standard_errors(drawn, curve) for curve in drawn.found} if KL in columns else {}
    entries, betas = d.legend(drawn, cells, loss_each)
    keys = [_key("chosen", d.SOLID), _key("rejected", DOTTED)] if CHOSEN in columns else []
    if REWARD_MODEL in {curve.objective for curve in drawn.found} and MARGIN in columns:
        keys.append(_key("reward model", d.MODEL_LINE))
    bounded = ", ".join(_short(column) for column in columns if is_bounded(column))
    kind = f"t ({bounded}: bootstrap)" if bounded else "t"
    note = f"Held-out pairs. {d.note_on_runs(drawn, 'each quantity', kind)}{betas}"
    if KL in columns:
        note += " KL(π, π_ref): of the policy's own answers (k3); bars: ±1 standard error."
    if left_out:
        note += f" No room for {', '.join(left_out)}: see curves (--metric)."
    panels = [PANELS[column] for column in columns]
    x_label = "step (optimiser updates; log scale from 1)"
    legends = [entries, keys + ([d.diverged_key()] if drawn.diverged else [])]
    with sheet([*cells], x_label, panels, legends, note) as on:
        for nth, column in enumerate(columns):
            axes = on.of(nth, len(columns))
            both = [(frames[column], None)]
            if column == CHOSEN:
                both = [(frames[CHOSEN], d.SOLID), (drawn.frames(REJECTED), DOTTED)]
            if column == ACCURACY:
                on.share_y(axes)
                for ax in axes:
                    spare = 0.15 if on.small else 0.08  # for the markers
                    style.frame_y(ax, [[-spare, 1.0 + spare]])
                    ax.yaxis.set_major_locator(FixedLocator([0.0, 0.5, 1.0]))
            else:
                beside = {curve: [*bars[1:]] for curve, bars in errors.items()} if column == KL else {}
                wanted = zip(*(drawn.wanted(cells.values(), own, beside) for own, _ in both), strict=True)
                d.share_y(on, axes, [*cells], [[v for those in parts for v in those] for parts in wanted], signed=True)
            for ax, members in zip(axes, cells.values(), strict=True):
                for own, line in both:
                    drawn.draw(ax, members, own, log_steps=True, line=line)
                for curve in members if column == KL else ():
                    _bars(ax, errors[curve], drawn.look[curve.loss, curve.beta].colour)
                ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        d.count_steps_in_tens(on.axes[0], last=int(evaluations["step"].max()))
    return on.figure


def _columns(drawn: d.Material, cells: int) -> tuple[list[str], list[str]]:
    """The panels there is something for and room for, from top to bottom; and the names of those without room."""
    those = drawn.runs.loc[[run for curve in drawn.found for run in curve.ids], "columns"]
    held = frozenset[str]().union(*those)
    there = [column for column in FIRST if column in held]
    most = next((panels for up_to, panels in ROOM.items() if cells <= up_to), 1)
    kept = [column for column in PANELS if column in there[:most]]
    return kept, [_short(column) for column in there[most:]]


def _short(column: str) -> str:
    return PANELS[column].label.split(" (")[0]


Bars = tuple[np.ndarray, np.ndarray, np.ndarray]


def _standard_errors(drawn: d.Material, curve: Curve) -> Bars:
    """Steps, and the KL less and more its standard error: of the mean over a curve's steady runs, their answers drawn
    again. It is not what tells one seed from another.
    """
    steady = drawn.parts[curve][0]
    nothing = np.zeros(0)
    if steady is None or KL_SE not in drawn.history:
        return nothing, nothing, nothing
    own = drawn.history[drawn.history["run"].isin(steady.ids)].dropna(subset=[KL, KL_SE])
    by_step = own.assign(variance=own[KL_SE] ** 2).groupby("step")
    mean = by_step[KL].mean().to_numpy()
    error = np.sqrt(by_step["variance"].sum().to_numpy()) / by_step.size().to_numpy()
    return np.array(list(by_step.groups)), mean - error, mean + error


def _bars(ax: Any, bars: Bars, colour: Any) -> None:
    step, low, high = bars
    if len(step) and len(step) <= d.MOST_MARKED:
        ax.errorbar(step, (low + high) / 2, yerr=(high - low) / 2, ecolor=colour, **BAR)


def _key(label: str, line: Any) -> Line2D:
    marks = d.MARKER if line == d.SOLID else d.HOLLOW
    return Line2D([], [], color="0.25", marker="o", linewidth=d.WIDTH, linestyle=line, label=label, **marks)
