"""Bias and spread of the KL estimators k1, k2, k3, for two unit Gaussians: closed forms, and a seeded experiment.

Needs no sweep. Both relative to the KL itself: k1 and k3 are unbiased, k2's bias is half of the KL in nats; k3 has
less spread than k1 up to a shift of 1.12 (KL 0.63), and more beyond.
"""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis import kl_estimators as k
from analysis.figures import draw as d
from analysis.figures.sheet import Panel, sheet

SHIFTS = (0.1, 0.2, 0.5, 1.0, 1.5)  # beyond, no sample of this size shows the tail of k3
KL_TICKS = (0.005, 0.02, 0.125, 0.5, 2.0)
LINE = np.geomspace(0.09, 2.2, 200)
# Colour, marker and place beside the shift: the three lie on one another where they are unbiased.
LOOKS: dict[str, tuple[Any, str, float]] = {
    "k1": (sns.color_palette("colorblind")[0], "s", 0.94),
    "k2": (sns.color_palette("colorblind")[3], "o", 1.0),
    "k3": (sns.color_palette("colorblind")[2], "^", 1.06),
}


def of_theory() -> Figure:
    """The figure; the same each time."""
    found = k.experiment(SHIFTS)
    keys = [
        Line2D([], [], color=colour, marker=marker, linewidth=d.WIDTH, label=name, **d.MARKER)
        for name, (colour, marker, _) in LOOKS.items()
    ]
    note = (
        f"q = N(0, 1), p = N(m, 1), KL(q, p) = m²/2. Lines: closed forms. Points: {k.BATCHES} seeded experiments of "
        f"{k.SAMPLES} samples of q each; bars: 95\N{NO-BREAK SPACE}% t interval. k1 = −log r, k2 = (log r)²/2, "
        "k3 = r − 1 − log r, r = p/q."
    )
    panels = [Panel("bias / KL", 34.0), Panel("s.d. of a sample / KL", 34.0)]
    with sheet([""], "KL(q, p) (nats)", panels, [keys], note) as on:
        bias, spread = on.axes
        spread.set_yscale("log")
        bias.set_xscale("log")
        for name, (colour, marker, aside) in LOOKS.items():
            own = found[found["name"] == name]
            kl, exact = k.divergence(own["shift"]), k.divergence(LINE)
            style: dict[str, Any] = {"color": colour, "linewidth": d.WIDTH, "zorder": 3}
            bias.plot(exact, (k.mean(name, LINE) - exact) / exact, **style)
            spread.plot(exact, k.standard_deviation(name, LINE) / exact, **style)
            points: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "zorder": 4, "capsize": 1.5,
                                      "elinewidth": 0.8, **d.MARKER}  # fmt: skip
            bias.errorbar(aside * kl, (own["mean"] - kl) / kl, own["mean_half"] / kl, **points)
            spread.errorbar(aside * kl, own["sd"] / kl, own["sd_half"] / kl, **points)
        for ax in on.axes:
            _ticks(ax)
        spread.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20]))
        spread.yaxis.set_minor_locator(NullLocator())
        bias.set_ylim(-0.15, 1.25)
    return on.figure


def _ticks(ax: Axes) -> None:
    ax.xaxis.set_major_locator(FixedLocator(KL_TICKS))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(d.plain))
    ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
