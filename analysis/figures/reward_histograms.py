"""The implicit reward of every probed pair, beta times its log-ratio, at the first and at the last evaluation.

Means over a batch hide that a few pairs may carry the margin. Both responses in one panel: what the loss pulls apart,
and whether the chosen ones fall too. Filled: pairs that were trained on; outlined: held out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.figures import draw as d
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import Curve
from analysis.sweep import census, with_columns

BINS = 40
# Dark and light, so that they differ in grey too; the outlines differ in their dashes besides.
SIDES: dict[str, tuple[Any, Any]] = {
    "chosen": (sns.color_palette("colorblind")[0], "-"),
    "rejected": (sns.color_palette("colorblind")[1], (0, (3, 1.2))),
}
SETS = {"train": "trained on", "held_out": "held out"}


def draw(runs: pd.DataFrame, probes: pd.DataFrame) -> Figure:
    """`Sweep.runs` and the rows of `beside_history.probes` -> the figure. Pairs of all seeds of a curve together."""
    if probes.empty:
        raise d.NothingToDraw("no run has evaluated every pair by itself (probes.arrow)")
    probed = runs[runs.index.isin(probes["run"].unique()) & runs["beta"].notna()]
    if with_columns(probed).empty:
        raise d.NothingToDraw("no run that evaluated every pair has a beta")
    drawn = d.material(probed, probes, "probes")
    evaluations = probes.groupby("run")["step"].agg(["min", "max"])
    panels = {
        ", ".join(part for part in (d.name(curve), curve.setting) if part): _values(probes, curve, evaluations)
        for curve in (drawn.found[i] for i in d.spread(len(drawn.found), d.MOST_PANELS))
    }
    everything = np.concatenate([v for both in panels.values() for own in both for v in own.values()])
    edges = _edges(everything)
    keys: list[Any] = [Patch(facecolor=colour, alpha=0.6, label=side) for side, (colour, _) in SIDES.items()]
    there = [name for name in SETS if (probes["set"] == name).any()]
    if "held_out" in there:
        keys += [
            Line2D([], [], color=colour, linestyle=dash, linewidth=1.2, label=f"{side}, held out")
            for side, (colour, dash) in SIDES.items()
        ]
    seeds = sorted({len(curve.ids) for curve in drawn.found})
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    steps = evaluations.loc[probed.index]
    first, last = ({int(v) for v in steps[name]} for name in ("min", "max"))
    lacking = len(with_columns(runs)) - len(with_columns(probed))
    note = (
        f"{census(runs)}" + (f"; {lacking} without probes, not shown" if lacking else "") + drawn.lacking
        + f". Pairs of {n} seed{'s' if n != '1' else ''} together, each set's shares sum to 1."
        + f" First: step {_span(first)}; last: step {_span(last)}. Reward: β times the log-ratio."
    )  # fmt: skip
    two = [Panel("share, first", 20.0), Panel("share, last", 20.0)]
    with sheet([*panels], "implicit reward (logit)", two, [keys], note) as on:
        for i, (upper, lower) in enumerate(zip(on.of(0, 2), on.of(1, 2), strict=True)):
            for ax, own in zip((upper, lower), [*panels.values()][i], strict=True):
                _panel(ax, own, edges)
        for ax in on.axes:
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_locator(MaxNLocator(3))
            ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        on.axes[0].set_xlim(edges[0], edges[-1])
        on.axes[0].xaxis.set_major_formatter(FuncFormatter(d.plain))
    return on.figure


Values = dict[tuple[str, str], Any]  # (set, side) -> rewards


def _values(probes: pd.DataFrame, curve: Curve, evaluations: pd.DataFrame) -> tuple[Values, Values]:
    """At the first and at the last evaluation of each of the curve's runs."""
    own = probes[probes["run"].isin(curve.ids)]
    found = []
    for which in ("min", "max"):
        then = own[own["step"].to_numpy() == evaluations.loc[own["run"], which].to_numpy()]
        found.append(
            {
                (name, side): curve.beta * then.loc[then["set"] == name, f"log_ratio_{side}"].to_numpy()
                for name in SETS
                for side in SIDES
            }
        )
    return found[0], found[1]


def _edges(rewards: Any) -> Any:
    """Bins over the middle 99 %, the same in every panel; what lies outside is counted in the outermost ones."""
    finite = rewards[np.isfinite(rewards)]
    if not finite.size:
        return np.linspace(-1, 1, BINS + 1)
    low, high = np.quantile(finite, [0.005, 0.995])
    spare = 0.05 * (high - low) or 1.0
    return np.linspace(low - spare, high + spare, BINS + 1)


def _panel(ax: Axes, own: Values, edges: Any) -> None:
    for (name, side), rewards in own.items():
        finite = rewards[np.isfinite(rewards)]
        if not finite.size:
            continue
        shares = np.histogram(finite.clip(edges[0], edges[-1]), edges)[0] / finite.size
        colour, dash = SIDES[side]
        if name == "train":
            ax.stairs(shares, edges, fill=True, color=colour, alpha=0.6, linewidth=0)
        else:
            ax.stairs(shares, edges, color=colour, linestyle=dash, linewidth=1.2, zorder=3)


def _span(steps: "set[int] | Sequence[int]") -> str:
    return f"{min(steps)}" if len({*steps}) == 1 else f"{min(steps)} to {max(steps)}"
