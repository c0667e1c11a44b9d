"""Figures: pi(chosen) in the smallest model, log pi(chosen) in the toy Llama, CHES against displacement."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures import draw as d
from analysis.figures import style, symlog
from analysis.figures.looks import LOOKS, NAMES, Look
from analysis.figures.sheet import Panel, sheet

FROZEN = (0, (3.2, 1.3))


def features(rows: pd.DataFrame) -> Figure:
    """pi(chosen) and the loss over its start against the update."""
    settings = list(rows[["loss", "beta", "lr"]].drop_duplicates().itertuples(index=False, name=None))
    keys = [
        Line2D(
            [],
            [],
            color=LOOKS[i].colour,
            marker=LOOKS[i].marker,
            linewidth=d.WIDTH,
            label=f"{NAMES[loss]} β = {beta:g}",
            **d.MARKER,
        )
        for i, (loss, beta, _) in enumerate(settings)
    ]
    keys.append(Line2D([], [], color="0.4", linewidth=1.0, linestyle=FROZEN, label="features frozen"))
    note = (
        "softmax(W h) over chosen, rejected and one more token, from a uniform start; W and h trained by gradient "
        "descent. No seed: nothing is random."
    )
    panels = [Panel("π(chosen)", 38.0), Panel("loss / its start", 22.0)]
    with sheet([""], "update", panels, [keys], note) as on:
        for i, (loss, beta, _) in enumerate(settings):
            own = rows[(rows["loss"] == loss) & (rows["beta"] == beta)]
            for frozen, run in own.groupby("frozen"):
                some = style.thinned(run["step"], run[["chosen", "value"]])
                mark = style.sparse(run["step"].to_numpy()[some], i, len(settings))
                for ax, values in zip(on.axes, (run["chosen"], run["value"] / run["value"].iloc[0]), strict=True):
                    x, y = run["step"].to_numpy()[some], values.to_numpy()[some]
                    line = FROZEN if frozen else "-"
                    ax.plot(x, y, color=LOOKS[i].colour, linewidth=1.0 if frozen else d.WIDTH, linestyle=line, zorder=3)
                    if not frozen:
                        ax.plot(
                            x[mark],
                            y[mark],
                            color=LOOKS[i].colour,
                            marker=LOOKS[i].marker,
                            linestyle="",
                            zorder=3.1,
                            **d.MARKER,
                        )
        on.axes[0].axhline(1 / 3, color="0.4", linewidth=0.7, linestyle=(0, (1, 1.5)))
        on.axes[0].set_ylim(0, 1)
        on.axes[1].set_ylim(0, 1.05)
    return on.figure


def trajectories(rows: pd.DataFrame, kinds: Mapping[str, str], losses: Sequence[str]) -> Figure:
    """Change of log pi(chosen) against the update: a panel for each kind of pair, the median of models and each one."""
    looks = dict(zip(losses, LOOKS, strict=False))  # not each loss's own: two of them would have the same colour
    keys = [_key(look, NAMES[loss], d.WIDTH) for loss, look in looks.items()]
    seeds = rows["seed"].nunique()
    note = (
        "Change of log π(chosen). Toy Llama, β = 0.1, SGD, one pair, after maximum likelihood on both responses. "
        f"Thick: median of {seeds} models, each with a pair of its own; thin: each of them. y axis: linear from −1 "
        "to 1, logarithmic beyond."
    )
    panel = Panel("change (nats)", 25.0)
    some = {kind: words for kind, words in kinds.items() if kind in set(rows["kind"])}
    with sheet([*some.values()], "update (log scale from 1)", [panel], [keys], note) as on:
        for ax, kind in zip(on.axes, some, strict=True):
            ax.set_yscale("symlog", **symlog.SCALE)
            ax.axhline(0, color="black", linewidth=0.7, zorder=1.5)
            for nth, (loss, look) in enumerate(looks.items()):
                own = rows[(rows["kind"] == kind) & (rows["loss"] == loss)]
                wide = own.pivot(index="step", columns="seed", values="a")
                ax.plot(wide.index, wide, color=look.colour, linewidth=0.4, alpha=0.5, zorder=2)
                middle = wide.median(axis=1)
                ax.plot(wide.index, middle, color=look.colour, linewidth=d.WIDTH, zorder=3)
                mark = style.sparse(d.LOG_STEPS.transform(wide.index.to_numpy(dtype=float)), nth, len(looks))
                ax.plot(
                    wide.index[mark],
                    middle.iloc[mark],
                    color=look.colour,
                    marker=look.marker,
                    linestyle="",
                    zorder=3.1,
                    **d.MARKER,
                )
        ends = rows["a"].to_numpy()
        for ax in on.axes:
            ax.set_ylim(symlog.limit(ax.yaxis, ends[np.isfinite(ends)], on.small))
        d.count_steps_in_tens(on.axes[0], int(rows["step"].max()))
    return on.figure


def scores(pairs: pd.DataFrame) -> Figure:
    """Change of log pi(chosen) against CHES; lengths by colour and marker."""
    lengths = list(pairs[["chosen", "rejected"]].drop_duplicates().itertuples(index=False, name=None))
    keys = [
        Line2D(
            [],
            [],
            color=look.colour,
            marker=look.marker,
            linestyle="",
            label=f"{chosen} and {rejected} tokens",
            **d.MARKER,
        )
        for (chosen, rejected), look in zip(lengths, LOOKS, strict=False)
    ]
    models = pairs["seed"].nunique()
    note = (
        f"{len(pairs)} random pairs, {models} untrained toy Llamas, each pair trained alone: DPO, β = 0.1, 50 updates. "
        "Chosen and rejected have so many tokens, of which 0, 50 or 90\N{NO-BREAK SPACE}% are common."
    )
    with sheet(
        [""], "CHES at initialisation (hundreds)", [Panel("change of log π(chosen) (nats)", 44.0)], [keys], note
    ) as on:
        (ax,) = on.axes
        ax.axhline(0, color="black", linewidth=0.7, zorder=1.5)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        for (chosen, rejected), look in zip(lengths, LOOKS, strict=False):
            own = pairs[(pairs["chosen"] == chosen) & (pairs["rejected"] == rejected)]
            marks = d.MARKER | {"markersize": 3.2}
            ax.plot(own["ches"] / 100, own["a"], color=look.colour, marker=look.marker, linestyle="", zorder=3, **marks)
    return on.figure


def _key(look: Look, label: str, width: float) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, linewidth=width, label=label, **d.MARKER)


def _marks(ax: Axes, x: Any, y: Any, look: Look) -> None:
    ax.plot(x, y, color=look.colour, marker=look.marker, linestyle="", zorder=3.1, **d.MARKER)
