"""Figures of the study beside the map: when collapse comes against when it should, and optimisers at one first step."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.figures import draw as d
from analysis.figures.looks import LOOKS, NAMES, of_losses
from analysis.figures.sheet import Panel, sheet


def times(runs: pd.DataFrame) -> Figure:
    """Measured against predicted update of collapse, a panel; the diagonal and a factor of 2 to each side."""
    shown = runs[runs["crossed"].notna() & np.isfinite(runs["predicted"])]
    looks = of_losses(list(dict.fromkeys(shown["loss"])))
    keys = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="", label=NAMES[loss], **d.MARKER)
        for loss, look in looks.items()
    ]
    lines = [Line2D([], [], color="black", linewidth=0.8, label="as predicted; dotted: a factor of 2")]
    seeds = runs["seed"].nunique()
    note = (
        f"Toy Llama, SGD, losses of the margin, three betas, {runs['lr'].nunique()} rates, {seeds} "
        f"{'seeds' if seeds > 1 else 'seed'}; a point is a run. Collapse: βh > 4.6, or π(rejected) below a hundredth "
        "of the reference's. Prediction: dh/dt = −lr K dL/dh, K from the first gradient."
    )
    label = "predicted update of collapse (log scale)"
    with sheet([""], label, [Panel("measured update (log scale)", 55.0)], [keys, lines], note) as on:
        (ax,) = on.axes
        ax.set_xscale("log")
        ax.set_yscale("log")
        ends = np.array(
            [shown[["crossed", "predicted"]].min().min() / 1.5, shown[["crossed", "predicted"]].max().max() * 1.5]
        )
        ax.plot(ends, ends, color="black", linewidth=0.8, zorder=1.5)
        for factor in (0.5, 2.0):
            ax.plot(ends, factor * ends, color="0.4", linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1.5)
        for loss, own in shown.groupby("loss", sort=False):
            look = looks[str(loss)]
            ax.plot(
                own["predicted"],
                own["crossed"],
                color=look.colour,
                marker=look.marker,
                linestyle="",
                zorder=3,
                **d.MARKER,
            )
        ax.set_xlim(*ends)
        ax.set_ylim(*ends)
    return on.figure


def same_first_step(pairs: pd.DataFrame) -> Figure:
    """Updates until collapse over those of SGD, by beta, a panel for each loss; bars: if |grad h| never changed."""
    losses = [loss for loss in ("dpo", "kto") if loss in set(pairs["loss"])]
    betas = sorted(pairs["beta"].unique())
    looks = {"adam": LOOKS[0], "rmsprop": LOOKS[1]}
    names = {"adam": "Adam", "rmsprop": "RMSprop"}
    keys = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="", label=names[optimizer], **d.MARKER)
        for optimizer, look in looks.items()
    ]
    keys += [Line2D([], [], color="black", linewidth=1.2, label="if |∇h| never changed (DPO)")]
    seeds = pairs["seed"].nunique()
    note = (
        f"Updates until collapse, toy Llama; a point is a run ({seeds} seeds). Each is compared with SGD at the rate "
        "that gives the same h after one update."
    )
    panel = Panel("updates / those of SGD", 32.0)
    with sheet([NAMES[loss] for loss in losses], "β", [panel], [keys], note) as on:
        for ax, loss in zip(on.axes, losses, strict=True):
            ax.set_yscale("log")
            ax.axhline(1, color="0.4", linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1.5)
            for k, (optimizer, look) in enumerate(looks.items()):
                own = pairs[(pairs["loss"] == loss) & (pairs["optimizer"] == optimizer)]
                at = own["beta"].map(betas.index) + 0.3 * (k - 0.5)
                spread = 0.03 * (own.groupby("beta").cumcount() - (seeds - 1) / 2)
                ax.plot(
                    at + spread, own["ratio"], color=look.colour, marker=look.marker, linestyle="", zorder=3, **d.MARKER
                )
                for x, ideal in zip(at, own["ideal"], strict=True):
                    if loss == "dpo":
                        ax.plot([x - 0.12, x + 0.12], [ideal, ideal], color="black", linewidth=1.2, zorder=2)
            ax.set_xlim(-0.5, len(betas) - 0.5)
            ax.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
            ax.set_ylim(min(pairs["ratio"].min(), pairs["ideal"].min()) / 1.6, pairs["ratio"].max() * 1.6)
            ax.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10]))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    return on.figure
