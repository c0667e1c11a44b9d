"""Bradley-Terry scores against updates, on separable and on other data: log t without end, or an estimate.

Needs no sweep. What DPO does to a table of actions is this with score = beta times log-ratio: whether it has an optimum
is decided by the data, by whether some action never lost.
"""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis import bradley_terry as bt
from analysis.figures import draw as d
from analysis.figures.sheet import Panel, sheet

ITEMS = ("a", "b", "c")
SEPARABLE = ((0, 1, 1), (0, 0, 1), (0, 0, 0))  # a beats b and c, b beats c
OTHERWISE = ((0, 3, 3), (1, 0, 3), (1, 1, 0))  # the same, three times of four
RATE = 1.0
AT = np.unique(np.round(np.geomspace(1, 1e5, 120)).astype(int))
THEORY: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2.5)), "zorder": 4}
LOOKS = [(sns.color_palette("colorblind")[i], marker) for i, marker in ((0, "s"), (2, "^"), (3, "o"))]


def of_theory() -> Figure:
    """The figure; the same each time."""
    keys = [
        Line2D([], [], color=colour, marker=marker, linewidth=d.WIDTH, label=f"item {item}", **d.MARKER)
        for item, (colour, marker) in zip(ITEMS, LOOKS, strict=True)
    ]
    theory = [Line2D([], [], **{**THEORY, "zorder": 2}, label="theory: ±log(lr t/3), or the estimate")]
    note = (
        f"Gradient descent on the mean −log likelihood, lr = {RATE:g}, from equal scores; no randomness. Never lost: "
        "the scores grow like log t along the direction of the largest margin (Soudry et al. 2018)."
    )
    titles = ["a ≻ b ≻ c, always", "a ≻ b ≻ c, 3 times of 4"]
    x_label = "t (updates; log scale)"
    with sheet(titles, x_label, [Panel("score (nats)", 36.0)], [keys, theory], note) as on:
        far = AT[AT * RATE > 20]
        lines = [(far, bt.chain_asymptote(far, lr=RATE)), (AT, np.tile(bt.estimate(OTHERWISE), (len(AT), 1)))]
        on.axes[0].set_xscale("log")
        for ax, wins, (t, line) in zip(on.axes, (SEPARABLE, OTHERWISE), lines, strict=True):
            scores = bt.descend(wins, AT, lr=RATE)
            for nth, (colour, marker) in enumerate(LOOKS):
                ax.plot(AT, scores[:, nth], color=colour, linewidth=d.WIDTH, zorder=3)
                some = slice(5 + 6 * nth, None, 24)
                ax.plot(AT[some], scores[some, nth], color=colour, marker=marker, linestyle="", zorder=3.1, **d.MARKER)
                ax.plot(t, line[:, nth], **THEORY)
            ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        on.axes[0].xaxis.set_major_locator(FixedLocator([1, 10, 100, 1e3, 1e4, 1e5]))
        on.axes[0].xaxis.set_minor_locator(NullLocator())
        on.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}".replace(",", "\N{THIN SPACE}")))
    return on.figure
