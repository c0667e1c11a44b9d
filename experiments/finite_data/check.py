"""A true preference seen in n labels: how often they agree, and what then becomes of DPO and IPO.

Of certain labels u is about log(c t), c = 2 lr beta^2. The rates make c 0.2 to 0.9 at every beta, so that u is past the
log odds of 49 labels out of 50 before half of the updates are made. IPO's rate is just below 1/2, where it is stable.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import binomtest

from analysis import collapse
from analysis.figures import draw as d
from analysis.figures.looks import LOOKS, NAMES
from analysis.figures.sheet import Panel, sheet
from experiments.study import Drawings, Frames, Number, Sweeps, Verdict

COLUMNS = (*collapse.COLUMNS[:8], "rewards/accuracies")
TRUE = 0.8  # the preference that the claim is about


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """runs: one row a run: loss, beta, p_star, n, seed, certain (do all labels agree), collapsed, u at the end."""
    parts = []
    for sweep in sweeps.values():
        judged = collapse.verdicts(sweep.runs, sweep.history)
        last = sweep.history.groupby("run", sort=False).last().loc[sweep.runs.index]
        parts.append(
            pd.DataFrame(
                {
                    "loss": sweep.runs["loss.name"],
                    "beta": sweep.runs["beta"],
                    "p_star": sweep.runs["data.p_star"].astype(float),
                    "n": sweep.runs["data.comparisons"].astype(int),
                    "seed": sweep.runs["seed"],
                    # Trained, the policy prefers what most labels do: all pairs have h > 0 only if all labels agree.
                    "certain": last["rewards/accuracies"] == 1.0,
                    "collapsed": (judged["C1"] & judged["C2"]).loc[sweep.runs.index].fillna(False).astype(bool),
                    "u": judged["u"],
                }
            )
        )
    return {"runs": pd.concat(parts, ignore_index=True)}


def exact(p: float, n: int) -> float:
    """The probability that n labels agree, one way or the other."""
    return float(p**n + (1 - p) ** n)


def check(frames: Frames) -> list[Verdict]:
    runs = frames["runs"]
    dpo = runs[runs["loss"] == "dpo"]
    samples = dpo.drop_duplicates(["p_star", "n", "seed"])  # of each beta they are the same
    cells = samples.groupby(["p_star", "n"])["certain"].agg(["sum", "count"]).reset_index()
    level = 1 - 0.05 / len(cells)
    numbers, outside = [], []
    for _, cell in cells.iterrows():
        p, n, seen, of = float(cell["p_star"]), int(cell["n"]), int(cell["sum"]), int(cell["count"])
        test = binomtest(seen, of)
        low, high = test.proportion_ci(0.95)
        numbers.append(Number(f"share of samples that agree, p* {p:g}, n {n}", seen / of, low, high, exact(p, n)))
        wide = test.proportion_ci(level)
        if not wide.low <= exact(p, n) <= wide.high:
            outside.append(f"p* {p:g}, n {n}")
    for (loss, beta), group in runs.groupby(["loss", "beta"], sort=False):
        for agree, expected in ((True, float(loss == "dpo")), (False, 0.0)):
            those = group[group["certain"] == agree]
            if those.empty:
                continue
            low, high = binomtest(int(those["collapsed"].sum()), len(those)).proportion_ci(0.95)
            what = "agree" if agree else "differ"
            share = float(those["collapsed"].mean())
            numbers.append(
                Number(
                    f"share collapsed, {NAMES[str(loss)]}, beta {beta:g}, labels {what}, {len(those)} runs",
                    share,
                    low,
                    high,
                    expected,
                )
            )
    claimed = {n: exact(TRUE, n) for n in sorted(cells["n"].unique())}
    certain, others = dpo[dpo["certain"]], dpo[~dpo["certain"]]
    ipo = runs[runs["loss"] == "ipo"]
    said = (
        f"{int(certain['collapsed'].sum())} of {len(certain)} DPO runs whose labels agree collapse, and "
        f"{int(others['collapsed'].sum())} of {len(others)} others; of {len(ipo)} IPO runs "
        f"{int(ipo['collapsed'].sum())} do. With a true preference of {TRUE:g}, n labels agree with probability "
        + ", ".join(f"{p:.2g} (n = {n})" for n, p in claimed.items())
        + "."
    )
    if outside or not certain["collapsed"].all() or others["collapsed"].any():
        said += f" Not binomial: {'; '.join(outside)}." if outside else ""
        return [Verdict("C7", "refuted", said, tuple(numbers))]
    few = [n for n, p in claimed.items() if p > 0.5]
    if len(few) == len(claimed):
        return [Verdict("C7", "holds", said, tuple(numbers))]
    condition = (
        f"For few labels a pair (of those tried: n = {', '.join(map(str, few))}), and for a loss without a finite "
        "optimum. Where one label of n disagrees, DPO has an optimum at the log odds of the labels and stays there. "
    )
    return [Verdict("C7", "holds under conditions", condition + said, tuple(numbers))]


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {"collapse_share": lambda: _draw(frames["runs"])}


def _draw(runs: pd.DataFrame) -> Figure:
    """Share of collapsed runs against n, with the probability that n labels agree."""
    truths, betas = sorted(runs["p_star"].unique()), sorted(runs["beta"].unique())
    keys = [
        Line2D([], [], color=look.colour, linewidth=d.WIDTH, label=f"p* = {p:g}")
        for p, look in zip(truths, LOOKS, strict=False)
    ] + [
        Line2D([], [], color="0.4", marker="os^"[i], linestyle="", label=f"β = {beta:g}", **d.MARKER)
        for i, beta in enumerate(betas)
    ]  # fmt: skip
    seeds = runs.groupby(["loss", "beta", "p_star", "n"]).size().iloc[0]
    note = (
        f"Lines: probability that n labels agree. Points: share of {seeds} runs that collapsed (reward margin above "
        "4.6 and still growing); bars: 95\N{NO-BREAK SPACE}% interval (Clopper and Pearson). "
        "Points of one n stand side by side."
    )
    losses = [loss for loss in ("dpo", "ipo") if loss in set(runs["loss"])]
    ns = sorted(runs["n"].unique())
    with sheet(
        [NAMES[loss] for loss in losses],
        "labels of the pair, n (log scale)",
        [Panel("share of runs", 34.0)],
        [keys],
        note,
    ) as on:
        on.axes[0].set_xscale("log")
        on.axes[0].xaxis.set_major_locator(FixedLocator(ns))
        on.axes[0].xaxis.set_minor_locator(NullLocator())
        on.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        along = np.geomspace(ns[0], ns[-1], 200)
        for ax, loss in zip(on.axes, losses, strict=True):
            ax.set_ylim(-0.05, 1.05)
            for nth, (p, look) in enumerate(zip(truths, LOOKS, strict=False)):
                if loss == "dpo":
                    ax.plot(along, p**along + (1 - p) ** along, color=look.colour, linewidth=d.WIDTH, zorder=2)
                for i, beta in enumerate(betas):
                    own = runs[(runs["loss"] == loss) & (runs["p_star"] == p) & (runs["beta"] == beta)]
                    if own.empty:
                        continue
                    found = own.groupby("n")["collapsed"].agg(["sum", "count"])
                    share = found["sum"] / found["count"]
                    ends = [binomtest(int(k), int(n)).proportion_ci(0.95) for k, n in found.to_numpy()]
                    bars = np.abs(np.array([[end.low, end.high] for end in ends]).T - share.to_numpy())
                    place = nth * len(betas) + i - (len(truths) * len(betas) - 1) / 2
                    ax.errorbar(
                        np.array(found.index) * 1.05**place,
                        share,
                        bars,
                        color=look.colour,
                        marker="os^"[i],
                        linestyle="",
                        elinewidth=0.6,
                        zorder=3,
                        **d.MARKER,
                    )
    return on.figure
