"""The rewards of chosen and rejected against step: their margin, and under it the share of pairs in the right order.

A policy's implicit reward (beta log pi/pi_ref) and a reward model's output (times beta) are the same two columns, so
that a sweep over `objective` shows them in one panel.
"""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.figures import draw as d
from analysis.figures import style
from analysis.figures.sheet import Panel, sheet
from analysis.sweep import PREFERENCE, REWARD_MODEL

MARGIN, ACCURACY = "rewards/margins", "rewards/accuracies"
WHAT = {PREFERENCE: "β times the log-ratio", REWARD_MODEL: "β times the model's output"}


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. A margin is the logit of the preference it predicts."""
    drawn = d.material(runs, history, "rewards", MARGIN, ACCURACY)
    loss_each = drawn.many_losses()
    panels = drawn.panels(loss_each)
    margins, accuracies = drawn.frames(MARGIN), drawn.frames(ACCURACY)
    kinds = [kind for kind in WHAT if kind in {curve.objective for curve in drawn.found}]
    entries, betas = d.legend(drawn, panels, loss_each)
    keys = [_key(kind) for kind in kinds] if REWARD_MODEL in kinds else []
    legends = [entries, keys + ([d.diverged_key()] if drawn.diverged else [])]
    rewards = ", or ".join(WHAT[kind] for kind in kinds)
    note = f"{d.note_on_runs(drawn, 'margin or accuracy', 't (accuracy: bootstrap)')}{betas} Reward: {rewards}."
    x_label = "step (optimiser updates; log scale from 1)"
    two = [Panel("reward margin (logit)", 42.0), Panel("accuracy", 20.0)]
    with sheet([*panels], x_label, two, legends, note) as on:
        d.share_y(on, on.of(0, 2), [*panels], drawn.wanted(panels.values(), margins), signed=True)
        on.share_y(on.of(1, 2))
        spare = 0.15 if on.small else 0.05  # for the markers
        for upper, lower, members in zip(on.of(0, 2), on.of(1, 2), panels.values(), strict=True):
            style.frame_y(lower, [[-spare, 1.0 + spare]])
            drawn.draw(upper, members, margins, log_steps=True)
            drawn.draw(lower, members, accuracies, log_steps=True)
            upper.yaxis.set_major_formatter(FuncFormatter(d.plain))
            lower.yaxis.set_major_locator(FixedLocator([0.0, 1.0] if on.small else [0.0, 0.5, 1.0]))
            lower.yaxis.set_major_formatter(FuncFormatter(d.plain))
        d.count_steps_in_tens(on.axes[0], last=int(history["step"].max()))
    return on.figure


def _key(kind: str) -> Line2D:
    """The legend entry of a kind of reward, whatever its loss and beta."""
    model = kind == REWARD_MODEL
    line, marks = (d.MODEL_LINE, d.HOLLOW) if model else (d.SOLID, d.MARKER)
    label = "reward model" if model else "implicit reward"
    return Line2D([], [], color="0.25", marker="o", linewidth=d.WIDTH, linestyle=line, label=label, **marks)
