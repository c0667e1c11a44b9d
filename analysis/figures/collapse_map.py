"""Which kind of collapse, and when, by beta and learning rate: a panel for each loss and optimiser.

The darker a cell, the worse: the shades are told apart in grey and by colour-blind readers. A cell holds the median
step of onset, and under it how many seeds have the label if not all of them do.
"""

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis import collapse
from analysis.figures import draw as d
from analysis.figures import looks
from analysis.figures.sheet import Panel, sheet
from analysis.sweep import census, objectives, with_columns

MOST_NUMBERED = 5  # cells side by side in which a number can be read
MOST_BETAS = 12  # cells over one another that can be told apart by a tick each
KEYS = ["loss.name", "objective", "optimizer.name"]  # of a panel
SHADES = dict(
    zip(collapse.LABELS, ["#f4f4f0", *sns.color_palette("viridis_r", 6).as_hex()[:5], "#000000"], strict=True)
)


def draw(runs: pd.DataFrame, history: pd.DataFrame, verdicts: pd.DataFrame | None = None) -> Figure:
    """`Sweep.runs`, `Sweep.history` and, if they are there already, `collapse.verdicts` of them -> the figure.

    Seeds of a setting share a cell; so does all else that varies but loss, optimiser and what is trained.
    """
    those = with_columns(runs, "rewards/margins")
    if those.empty:
        raise d.NothingToDraw("no run has rewards/margins in its history")
    if verdicts is None:
        verdicts = collapse.verdicts(those, history[history["run"].isin(those.index)])
    about = those[["loss.name", "optimizer.name", "beta", "lr"]].assign(objective=objectives(those))
    cells = verdicts.loc[verdicts.index.intersection(those.index)].join(about).dropna(subset=["label"])
    if cells.empty:
        raise d.NothingToDraw("no run is long enough to judge")
    several = cells["optimizer.name"].nunique() > 1
    panels = {
        looks.trained_name(str(loss), str(objective)) + (f", {optimizer}" if several else ""): own
        for (loss, objective, optimizer), own in cells.groupby(KEYS, sort=False)
    }
    left = len(panels) - d.MOST_PANELS
    panels = dict(list(panels.items())[: d.MOST_PANELS])
    rates = sorted(cells["lr"].unique())
    betas = sorted(cells["beta"].dropna().unique()) + ([math.nan] if cells["beta"].isna().any() else [])
    by_cell = cells.groupby([*KEYS, "beta", "lr"], dropna=False)["label"]
    shown = [label for label in collapse.LABELS if label in {_most(own) for _, own in by_cell}]
    keys = [
        Line2D([], [], linestyle="", marker="s", markersize=6, color=SHADES[label], markeredgecolor="0.4",
               markeredgewidth=0.4, label=label)
        for label in shown
    ]  # fmt: skip
    seeds = by_cell.size()
    n = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    lacking = len(runs) - len(cells)
    numbered = len(rates) <= MOST_NUMBERED and len(betas) <= MOST_BETAS
    note = (
        f"{census(runs)}"
        + (f"; {lacking} not judged" if lacking else "")
        + f". {n} run{'s' if n != '1' else ''} a cell."
        + (" Number: median step of onset." if numbered else "")
        + " Colour: the label most of a cell's runs have, of several the worst."
        + (f" {left} more panels not drawn." if left > 0 else "")
    )
    with sheet([*panels], "learning rate", [Panel("β", 5.0 * min(len(betas), MOST_BETAS) + 3.0)], [keys], note) as on:
        on.share_y(on.axes)
        for ax, own in zip(on.axes, panels.values(), strict=True):
            _panel(ax, own, rates, betas, numbered)
    return on.figure


def _panel(ax: Axes, cells: pd.DataFrame, rates: Sequence[float], betas: Sequence[float], numbered: bool) -> None:
    """The axes count settings: lr from left to right, beta upwards."""
    ax.grid(False)
    line = 0.8 if len(betas) <= MOST_BETAS else 0.0  # white lines would cover narrow cells
    for i, beta in enumerate(betas):
        for j, rate in enumerate(rates):
            same = cells["beta"].isna() if math.isnan(beta) else cells["beta"] == beta
            own = cells[same & (cells["lr"] == rate)]
            if own.empty:
                continue
            label = _most(own["label"])
            those = own[own["label"] == label]
            ax.add_patch(
                Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=SHADES[label], edgecolor="white", linewidth=line)
            )
            onsets = those["onset"].dropna()
            if len(onsets) and numbered:
                onset = onsets.median()
                dark = collapse.LABELS.index(label) > 2
                share = "" if len(those) == len(own) else f" ({len(those)}/{len(own)})"
                ax.text(j, i, f"{onset:g}{share}", ha="center", va="center", size=6, color="white" if dark else "black")
    ax.set_xlim(-0.5, len(rates) - 0.5)
    ax.set_ylim(-0.5, len(betas) - 0.5)
    some = d.spread(len(rates), MOST_NUMBERED)
    ax.set_xticks(some, [f"{rates[i]:g}" for i in some])
    some = d.spread(len(betas), MOST_BETAS)
    ax.set_yticks(some, ["none" if math.isnan(betas[i]) else f"{betas[i]:g}" for i in some])
    ax.tick_params(length=0)


def _most(labels: "pd.Series[str]") -> str:
    """The label most of them are, of several the worst."""
    counts = Counter(map(str, labels))
    return max(counts, key=lambda label: (counts[label], collapse.LABELS.index(label)))
