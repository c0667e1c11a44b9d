"""How long runs hold out: the share that has not collapsed yet, a Kaplan-Meier curve for each loss."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis import collapse
from analysis import survival as s
from analysis.figures import draw as d
from analysis.figures import looks
from analysis.figures.sheet import Panel, sheet
from analysis.sweep import REWARD_MODEL, census, objectives, with_columns


def draw(runs: pd.DataFrame, history: pd.DataFrame, verdicts: pd.DataFrame | None = None) -> Figure:
    """`Sweep.runs`, `Sweep.history` and, if they are there already, `collapse.verdicts` of them -> the figure.

    All settings and seeds of a loss are one group; reward models of that loss are another.
    """
    runs = runs[runs["copy_of"].isna()]  # a run counts once, in however many places it was asked for
    those = with_columns(runs, "rewards/margins")
    if those.empty:
        raise d.NothingToDraw("no run has rewards/margins in its history")
    if verdicts is None:
        verdicts = collapse.verdicts(those, history[history["run"].isin(those.index)])
    timed = s.times(verdicts.loc[verdicts.index.intersection(those.index)])
    groups, base = {}, {}
    look = looks.of_losses(those["loss.name"].unique())
    for (loss, objective), own in those.groupby([those["loss.name"], objectives(those)], sort=False):
        name = looks.trained_name(str(loss), str(objective))
        groups[name], base[name] = list(own.index), (look[str(loss)], objective == REWARD_MODEL)
    curves = s.curves(timed, groups)
    collapsed = {name: int(timed.loc[ids, "collapsed"].sum()) for name, ids in groups.items()}
    keys = [
        Line2D([], [], label=f"{name} ({collapsed[name]} of {len(ids)})", **_style(*base[name]))
        for name, ids in groups.items()
    ]
    lacking = len(with_columns(runs)) - len(those)
    left_out = f"; {lacking} without rewards, not shown" if lacking else ""
    note = (
        f"{census(runs)}{left_out}. In brackets: runs that collapsed, in any way. Band: 95\N{NO-BREAK SPACE}% interval "
        f"(Greenwood). Runs that did not are censored at their last step.{_tests(timed, groups)}"
    )
    last = int(timed["duration"].max())
    x_label = "step (optimiser updates; log scale from 1)"
    together = len(groups) <= d.TOGETHER
    each = {str(key.get_label()): [loss] for key, loss in zip(keys, groups, strict=True)}
    panels = {"": [*groups]} if together else each
    panel = Panel("share not collapsed", 46.0 if together else 30.0)
    with sheet([*panels], x_label, [panel], [keys if together else []], note) as on:
        on.share_y(on.axes)
        for ax, losses in zip(on.axes, panels.values(), strict=True):
            ax.set_ylim(-0.05, 1.05)
            for loss in losses:
                _curve(ax, curves[curves["group"] == loss], *base[loss], timed.loc[groups[loss], "duration"].max())
            ax.yaxis.set_major_locator(FixedLocator([0.0, 0.5, 1.0]))
            ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        d.count_steps_in_tens(on.axes[0], last)
    return on.figure


def _style(look: looks.Look, model: bool) -> dict[str, Any]:
    """A reward model's line is broken and its markers are hollow, as in other figures."""
    marks = {**d.HOLLOW, "markeredgecolor": look.colour} if model else d.MARKER
    line = d.MODEL_LINE if model else d.SOLID
    return {"color": look.colour, "marker": look.marker, "linewidth": d.WIDTH, "linestyle": line, **marks}


def _curve(ax: Axes, curve: pd.DataFrame, look: looks.Look, model: bool, last: float) -> None:
    """A step function that goes on to the last step of any of the group's runs; markers where it falls."""
    style = _style(look, model)
    marks = {**style, "linewidth": 0}
    ends = pd.concat([curve, curve.tail(1).assign(step=last)])
    ax.step(ends["step"], ends["survival"], where="post", zorder=3, **{**style, "marker": ""})
    falls = curve[curve["survival"].diff() < 0]
    marked = falls.iloc[:: max(1, len(falls) // 6)]
    ax.plot(marked["step"], marked["survival"], zorder=3.1, **marks)
    ax.fill_between(ends["step"], ends["low"], ends["high"], step="post", color=look.colour, alpha=0.2, linewidth=0)


def _tests(timed: pd.DataFrame, groups: s.Groups) -> str:
    """The log-rank tests in words: the one, or how many of several are significant after Holm's correction."""
    found = s.log_rank(timed, groups)
    if found.empty:
        return ""
    if len(found) == 1:
        one, other, p = found.loc[found.index[0], ["group", "other", "p"]]
        said = "< 0.001" if p < 0.001 else f"= {p:.2g}"
        return f" Log-rank test of {one} against {other}, all their runs: p {said}."
    few = int((found["p_holm"] < 0.05).sum())
    return (
        f" Log-rank tests of every two losses of which one collapsed, all their runs: {few} of {len(found)} differ at "
        "the 5\N{NO-BREAK SPACE}% level (Holm)."
    )
