"""Which kind of collapse, and when, by beta and learning rate: a panel for each loss and optimiser.

The darker a cell, the worse: the shades are told apart in grey and by colour-blind readers. A cell holds the median
step of onset, and under it how many seeds have the label if not all of them do.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle

from analysis import collapse
from analysis.figures import draw as d
from analysis.figures import looks, style
from analysis.figures.sheet import Panel, sheet
from analysis.sweep import census, objectives, with_columns

MOST_NUMBERED = 5  # cells side by side in which a number can be read
MOST_BETAS = 12  # cells over one another that can be told apart by a tick each
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
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


ROW, HEADING = 4.3, 5.6  # mm: of a loss, and above each group of them
LEFT, TOP = 24.0, 12.5  # of the cells


def by_loss(cells: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> Figure:
    """Losses from top to bottom in `groups`, beside each other optimisers, their rates, and betas: the page's width.

    cells: a row a run, with loss, optimizer, lr, beta (NaN of a loss that has none: its cell spans all betas) and, of
    `collapse.verdicts`, label and onset. groups: heading -> losses; those without runs are left out. With a column
    `beyond`, cells where it is true get a dot: the loss has an optimum there, past the thresholds of collapse.
    """
    cells = cells.dropna(subset=["label"])
    there = {name: [loss for loss in losses if (cells["loss"] == loss).any()] for name, losses in groups.items()}
    there = {name: losses for name, losses in there.items() if losses}
    betas = sorted(cells["beta"].dropna().unique())
    blocks = list(cells[["optimizer", "lr"]].drop_duplicates().itertuples(index=False, name=None))
    rows = sum(map(len, there.values()))
    shown = [label for label in collapse.LABELS if (cells["label"] == label).any()]
    seeds = cells.groupby(["loss", "optimizer", "lr", "beta"], dropna=False).size()
    dotted = "beyond" in cells and bool(cells["beyond"].any())
    note = (
        f"{'A cell is one run' if seeds.max() == 1 else f'A cell has {seeds.max()} seeds'}. Colour: the label most of "
        "its runs have, of several the worst. Number: update at which it set in, median. Corner: not all of its runs "
        "have the label. A loss without a β has one cell for each rate."
        + (" Dot: the optimum lies beyond the thresholds of collapse." if dotted else "")
    )
    lines = textwrap.wrap(note, 138)
    below = 3.1 * len(lines) + 9.0
    height = TOP + rows * ROW + len(there) * HEADING + below
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(style.PAGE * style.MM, height * style.MM))
        FigureCanvasAgg(figure)
        bottom, tall = below / height, (height - below - TOP) / height
        ax = figure.add_axes((LEFT / style.PAGE, bottom, 1 - (LEFT + 2.0) / style.PAGE, tall))
        ax.set_axis_off()
        gap = 0.35  # cells between two blocks
        width = len(blocks) * (len(betas) + gap) - gap
        ax.set_xlim(0, width)
        ax.set_ylim((height - below - TOP), 0)
        for k, (optimizer, lr) in enumerate(blocks):
            x = k * (len(betas) + gap)
            ax.text(x + len(betas) / 2, -7.6, f"{OPTIMIZERS.get(str(optimizer), optimizer)}, lr {_rate(lr)}",
                    ha="center", va="center", size=7)  # fmt: skip
            ax.plot([x + 0.05, x + len(betas) - 0.05], [-5.4, -5.4], color="0.4", linewidth=0.6, clip_on=False)
            for i, beta in enumerate(betas):
                ax.text(x + i + 0.5, -3.0, f"{beta:g}", ha="center", va="center", size=6.5)
        ax.text(-0.15, -3.0, "β", ha="right", va="center", size=7)
        y = 0.0
        for name, losses in there.items():
            ax.text(0, y + HEADING - 2.4, name, ha="left", va="center", size=7, weight="bold")
            y += HEADING
            for loss in losses:
                ax.text(-0.15, y + ROW / 2, looks.loss_name(loss), ha="right", va="center", size=7)
                for k, (optimizer, lr) in enumerate(blocks):
                    own = cells[(cells["loss"] == loss) & (cells["optimizer"] == optimizer) & (cells["lr"] == lr)]
                    x = k * (len(betas) + gap)
                    if own["beta"].isna().all() and len(own):
                        _cell(ax, own, x, y, len(betas))
                    for i, beta in enumerate(betas):
                        _cell(ax, own[own["beta"] == beta], x + i, y, 1)
                y += ROW
        keys = [
            Line2D([], [], linestyle="", marker="s", markersize=6, color=SHADES[label], markeredgecolor="0.4",
                   markeredgewidth=0.4, label=label)
            for label in shown
        ]  # fmt: skip
        tight = {"frameon": False, "borderaxespad": 0, "borderpad": 0, "handletextpad": 0.2, "columnspacing": 1.4}
        at = (2 / style.PAGE, (below - 1.5) / height)
        figure.legend(handles=keys, loc="upper left", bbox_to_anchor=at, ncols=len(keys), **tight)
        figure.text(2 / style.PAGE, 1.2 / height, "\n".join(lines), size=7, color="0.3", va="bottom", linespacing=1.15)
    return figure


def _cell(ax: Axes, runs: pd.DataFrame, x: float, y: float, wide: int) -> None:
    if runs.empty:
        return
    label = _most(runs["label"])
    those = runs[runs["label"] == label]
    ax.add_patch(Rectangle((x, y), wide, ROW, facecolor=SHADES[label], edgecolor="white", linewidth=0.7))
    dark = collapse.LABELS.index(label) > 2
    colour = "white" if dark else "black"
    onsets = those["onset"].dropna()
    if len(onsets):
        number = f"{onsets.median():.0f}"
        ax.text(x + wide / 2, y + ROW / 2 + 0.1, number, ha="center", va="center", size=6, color=colour)
    if "beyond" in runs and runs["beyond"].any():
        ax.plot(x + 0.1, y + ROW - 0.8, marker="o", markersize=1.2, color=colour, linewidth=0)
    if len(those) < len(runs):
        right = x + wide - 0.04
        corner = [(right - 0.18, y + 0.25), (right, y + 0.25), (right, y + 1.6)]
        ax.add_patch(Polygon(corner, facecolor=colour, linewidth=0))


def _rate(lr: float) -> str:
    """0.003, but 1e-4: a rate is to fit over its betas."""
    return f"{lr:g}" if lr >= 1e-3 else np.format_float_scientific(lr, trim="-", exp_digits=1)
