"""Reward against KL from the reference, a trajectory for each run, under the exact frontier of the problem.

Rafailov et al. 2023 (arXiv 2305.18290), Fig. 2, show methods so. No policy lies above the frontier: pi_beta, which is
proportional to ref exp(reward/beta), has the most reward at its KL. A run that goes right without going up is
over-optimised.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis import collapse, distribution, gold
from analysis.figures import draw as d
from analysis.figures import style, symlog
from analysis.figures.looks import Look
from analysis.figures.sheet import Panel, sheet
from analysis.passes import rows_of_a_pass
from analysis.statistics import Curve
from analysis.sweep import as_dicts, census, with_columns

EXACT: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": (0, (4, 2.5))}
BETAS = np.geomspace(1e-3, 1e3, 400)
MOST_RUNS = 24  # of a panel, one line each
FAR = 5.0  # nats; at the bend of an axis of two kinds the frontier would not look concave
Path = tuple[gold.Array, gold.Array]  # KL [T] nats, reward [T]


def draw(runs: pd.DataFrame, history: pd.DataFrame) -> Figure:
    """`Sweep.runs` and `Sweep.history` -> the figure. A point is the policy after a pass over the data."""
    paths, problems, why_not = _paths(runs, history)
    if not paths:
        raise d.NothingToDraw(why_not)
    known = runs.loc[list(paths)]
    drawn = d.material(known, history[history["run"].isin(known.index)], "reward")
    loss_each = drawn.many_losses()
    panels = drawn.panels(loss_each)
    entries, betas = d.legend(drawn, panels, loss_each)
    ends = Line2D([], [], color="0.25", marker="o", linestyle="", label="end of training", **d.MARKER)
    exact = [Line2D([], [], **EXACT, label="frontier: ref exp(reward/β)")] if problems else []
    shown = {title: [_some(curve, len(own)) for curve in own] for title, own in panels.items()}
    there = sum(len(curve.ids) for own in panels.values() for curve in own)
    left_out = there - sum(len(ids) for own in shown.values() for ids in own)
    lacking = len(with_columns(runs)) - len(known)
    note = (
        f"{census(runs)}" + (f"; {lacking} without a true reward, not shown" if lacking else "")
        + (f"; {left_out} more runs not drawn" if left_out else "")
        + drawn.lacking + f". A line is one run, one seed, pass by pass.{betas}"
        + (f" The seeds' problems differ: {len(problems)} frontiers." if len(problems) > 1 else "")
        + _given(problems.values())
    )  # fmt: skip
    y_label = "expected reward (logit)"
    kls = np.concatenate([paths[run][0] for own in shown.values() for ids in own for run in ids])
    curves = [gold.frontier(problem, BETAS) for problem in list(problems.values())[:MOST_RUNS]]
    with sheet([*panels], "KL(π, π_ref) (nats)", [Panel(y_label, 48.0)], [entries, [*exact, ends]], note) as on:
        right = max(1.1 * float(np.nanmax(kls)), 0.1)
        rewards = [paths[run][1] for own in shown.values() for ids in own for run in ids]
        for ax, (title, members) in zip(on.axes, panels.items(), strict=True):
            style.frame_y(ax, [*rewards, *(reward[kl <= right] for reward, kl in curves)])
            for reward, kl in curves:
                ax.plot(kl, reward, zorder=4, **EXACT)
            for curve, ids in zip(members, shown[title], strict=True):
                for run in ids:
                    _trajectory(ax, paths[run], drawn.look[curve.loss, curve.beta])
            ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        _kl_axis(on.axes[0], right)
        on.share_y(on.axes)
    return on.figure


def _paths(runs: pd.DataFrame, history: pd.DataFrame) -> tuple[dict[str, Path], dict[Any, gold.Gold], str]:
    """Run -> its path; the problems they solve; and, if there is none, why."""
    recorded = distribution.columns(history)
    tables = list(dict.fromkeys(column.split("/")[1] for column in recorded))
    rows = history.groupby("run", sort=False).indices
    paths: dict[str, Path] = {}
    problems: dict[Any, gold.Gold] = {}
    reasons: dict[str, None] = {}
    for run in as_dicts(with_columns(runs)):
        own = history.take(np.asarray(rows[run["id"]]))
        if collapse.GOLD_REWARD in run["columns"] and "exact/kl" in run["columns"]:
            paths[run["id"]] = own["exact/kl"].to_numpy(), own[collapse.GOLD_REWARD].to_numpy()
            continue
        there = [table for table in tables if f"log_pi/{table}/0" in run["columns"]]
        if not there:
            reasons["no run has its distribution over actions in its history"] = None
            continue
        try:
            problem = gold.of_run(run, len(there))
        except gold.NoGoldReward as error:
            reasons[str(error)] = None
            continue
        names = [[f"log_pi/{table}/{k}" for k in range(problem.reward.shape[1])] for table in there]
        reward, kl = gold.reward_and_kl(np.stack([own[columns].to_numpy() for columns in names], axis=1), problem)
        each = int(rows_of_a_pass(runs.loc[[run["id"]]])[0])
        after = np.unique(np.append(np.arange(0, len(kl), each), len(kl) - 1))
        paths[run["id"]] = kl[after], reward[after]
        problems[problem.key] = problem
    return paths, problems, "; ".join(reasons) or "no run has a history"


def _some(curve: Curve, curves: int) -> list[str]:
    """The runs of a curve that are drawn, so that a panel has no more than `MOST_RUNS`."""
    return list(curve.ids[: max(1, MOST_RUNS // curves)])


def _given(problems: Any) -> str:
    """What is left out of the policy."""
    partly = [problem for problem in problems if not problem.compared.all()]
    if not partly:
        return ""
    known = int(partly[0].compared.sum())
    others = len(partly[0].compared) - known
    return f" Of the policy given one of the {known} compared actions; {others} others have no reward."


def _trajectory(ax: Axes, path: Path, look: Look) -> None:
    kl, reward = path
    along = np.arange(len(kl))
    some = style.thinned(along, np.stack(path, axis=1))
    ax.plot(kl[some], reward[some], color=look.colour, linewidth=0.9, zorder=3)
    there = np.flatnonzero(np.isfinite(kl) & np.isfinite(reward))[-1:]
    ax.plot(kl[there], reward[there], color=look.colour, marker=look.marker, linestyle="", zorder=5, **d.MARKER)


def _kl_axis(ax: Axes, right: float) -> None:
    """Linear, or where runs went far linear to 1 nat and logarithmic beyond: most reward is had at little KL."""
    ax.set_xlim(-0.03 * min(right, FAR), right)
    if right >= FAR:
        ax.set_xscale("symlog", **symlog.SCALE)
        ax.set_xlim(-0.1, right)
        decades: Sequence[float] = [0.0, *(10.0**n for n in range(6) if 10.0**n <= right)]
        ax.xaxis.set_major_locator(FixedLocator(decades))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(d.plain))  # last: a scale sets its own
