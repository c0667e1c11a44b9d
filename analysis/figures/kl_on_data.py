"""k1, k2 and k3 of the data against step, and the exact KL(policy, reference) where it is recorded.

Their tokens come from the data and not from the policy, so none of them estimates the KL: where a policy leaves the
data they part from it, which this figure shows. What they are on the policy's own samples is in `kl_estimators`.
"""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis.figures import draw as d
from analysis.figures import style
from analysis.figures.sheet import Panel, sheet

COLUMNS = ("k1_on_data", "k2_on_data", "k3_on_data")
EXACT = "exact/kl"
MOST_IN_THREES = 12  # cells that are tall enough for three panels
KL: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2.5))}


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. Nats a token."""
    drawn = d.material(runs, history, "k1, k2, k3", *COLUMNS)
    loss_each = drawn.many_losses()
    panels = drawn.panels(loss_each)
    columns = COLUMNS if len(panels) <= MOST_IN_THREES else COLUMNS[2:]
    frames = [drawn.frames(column) for column in columns]
    exact = drawn.frames(EXACT) if EXACT in history and history[EXACT].notna().any() else {}
    entries, betas = d.legend(drawn, panels, loss_each)
    keys = [Line2D([], [], **KL, label="exact KL(π, π_ref)")] if exact else []
    legends = [entries, keys + ([d.diverged_key()] if drawn.diverged else [])]
    note = (
        d.note_on_runs(drawn, "k", "t (k2, k3: bootstrap)")
        + betas
        + " Over the data's tokens, not the policy's: no estimates of the KL."
    )
    if len(columns) == 1:
        note += " There is no room for k1 and k2: see curves (--metric)."
    each = [Panel(f"{column.split('_')[0]} (nats)", 24.0) for column in columns]
    with sheet([*panels], "step (optimiser updates; log scale from 1)", each, legends, note) as on:
        for i, own in enumerate(frames):
            of_panel = on.of(i, len(columns))
            d.share_y(on, of_panel, [*panels], drawn.wanted(panels.values(), own), signed=True)
            for ax, members in zip(of_panel, panels.values(), strict=True):
                drawn.draw(ax, members, own, log_steps=True)
                for steady in (drawn.parts[curve][0] for curve in members):
                    if exact and steady:
                        frame = exact[steady].iloc[style.thinned(exact[steady]["step"], exact[steady][["mean"]])]
                        ax.plot(frame["step"], frame["mean"], zorder=4, **KL)
                ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        d.count_steps_in_tens(on.axes[0], last=int(history["step"].max()))
    return on.figure
