"""Three actions a, b, c and a few certain comparisons, trained as in Azar et al. 2023 (arXiv 2310.12036), section 5.4.

A softmax from a uniform reference: Adam at 0.01, nine pairs an update drawn with replacement, 18,000 updates, ten
seeds. What the studies of their Figures 1 and 2 have in common: the data sets, IPO's closed form, the learning curves.
"""

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.figures import draw as d
from analysis.figures.action_probs import COLOURS, MARKERS
from analysis.figures.looks import NAMES, Look
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import mean_interval
from analysis.sweep import Sweep, as_dicts
from experiments.study import Number
from src.theory.bandit import ipo_optimum, softmax, wins_matrix

ACTIONS = [*"abc"]
LOG_PI = [f"log_pi/0/{k}" for k in range(3)]
COLUMNS = tuple(LOG_PI)
# (preferred, other), by the name the paper has for the set; the last is ours.
DATA = {
    "D1": ((0, 1), (1, 2), (0, 2)),
    "D2": ((0, 1), (1, 2), (2, 0)),
    "D3": ((0, 1), (1, 0)),
    "D3'": ((0, 1), (1, 0), (1, 2)),
}
SURE = 0.99  # a probability from which a policy counts as deterministic
CURVE_POINTS = 180


def optimum(data: str, tau: float) -> npt.NDArray[np.float64]:
    """IPO's probabilities of a, b, c."""
    return softmax(ipo_optimum(wins_matrix(DATA[data], 3), np.zeros(3), tau))


def measure(sweep: Sweep) -> dict[str, pd.DataFrame]:
    """runs: one row a run: data, loss, tau, seed; a, b, c: probabilities, mean over the last tenth of the updates;
    largest: that of the greatest over the last half; drift: how far the logit of c ever was from the mean of those of a
    and b; sure_at: updates from which on the greatest probability stays above `SURE`, NaN where it is not.
    curves: the probabilities of each run at some steps.
    """
    names = {frozenset(pairs): name for name, pairs in DATA.items()}
    rows, curves = [], []
    by_run = sweep.history.groupby("run", sort=False).indices
    logs, steps = sweep.history[LOG_PI].to_numpy(), sweep.history["step"].to_numpy()
    for run in as_dicts(sweep.runs):
        own, step = logs[by_run[run["id"]]], steps[by_run[run["id"]]]
        pi, last = np.exp(own), int(step[-1])
        pairs = frozenset((winner[0], loser[0]) for _, winner, loser in json.loads(run["data.rows"]))
        setting = {"data": names[pairs], "loss": run["loss.name"], "tau": float(run["beta"]), "seed": int(run["seed"])}
        unsure = np.flatnonzero(pi.max(1) <= SURE)
        at_end = pi[step > 0.9 * last].mean(0)
        rows.append(
            setting
            | dict(zip(ACTIONS, at_end, strict=True))
            | {
                "largest": float(pi[step > last / 2].max()),
                "drift": float(np.abs(own[:, 2] - own[:, :2].mean(1)).max()),
                "sure_at": float(unsure[-1] + 1) if unsure[-1] < last else np.nan,
                "u": run["beta"] * float(own[-1, 0] - own[-1, 1]),
            }
        )
        some = np.unique(np.linspace(0, last, CURVE_POINTS + 1).round().astype(int))
        curves.append(pd.DataFrame(setting | {"step": step[some]} | dict(zip(ACTIONS, pi[some].T, strict=True))))
    return {"runs": pd.DataFrame(rows), "curves": pd.concat(curves, ignore_index=True)}


def taus(runs: pd.DataFrame) -> str:
    """Those of these runs, in words."""
    return ", ".join(f"{tau:g}" for tau in sorted(runs["tau"].unique())) or "none"


def probabilities(runs: pd.DataFrame, data: str, loss: str, actions: Sequence[str] = ACTIONS) -> list[Number]:
    """Of actions at the end, tau by tau; beside those of IPO what its closed form says."""
    numbers = []
    for tau, own in runs[(runs["data"] == data) & (runs["loss"] == loss)].groupby("tau"):
        expected = dict(zip(ACTIONS, optimum(data, float(tau)), strict=True)) if loss == "ipo" else {}  # type: ignore[arg-type]
        numbers += [
            Number.mean(
                f"pi({action}) over the last tenth, {NAMES[loss]}, {data}, tau {tau:g}",
                own[action],
                expected.get(action),
            )
            for action in actions
        ]
    return numbers


def furthest(runs: pd.DataFrame, data: str) -> float:
    """Of IPO: the largest difference between a probability, mean over seeds, and its closed form, at any tau."""
    means = runs[(runs["data"] == data) & (runs["loss"] == "ipo")].groupby("tau")[ACTIONS].mean()
    return float(np.abs(means.to_numpy() - [optimum(data, float(tau)) for tau in means.index]).max())


def draw(curves: pd.DataFrame, data: str, shown: Sequence[float]) -> Figure:
    """Probabilities against updates: a row for each of these taus, DPO beside IPO, IPO's closed form dashed."""
    curves = curves[curves["data"] == data]
    cells = [(loss, tau) for tau in shown for loss in ("dpo", "ipo") if tau in set(curves["tau"])]
    keys = [
        Line2D([], [], color=COLOURS[k], marker=MARKERS[k], linewidth=d.WIDTH, label=action, **d.MARKER)
        for k, action in enumerate(ACTIONS)
    ]
    dashes = {"linewidth": 0.9, "linestyle": (0, (4, 2.5)), "zorder": 2.5}
    keys.append(Line2D([], [], color="0.25", label="closed form of IPO", **dashes))  # type: ignore[arg-type]
    pairs = ", ".join(f"({ACTIONS[winner]}, {ACTIONS[loser]})" for winner, loser in DATA[data])
    seeds = curves["seed"].nunique()
    note = (
        f"{data} = {{{pairs}}}, preferred first. Mean over {seeds} seeds; band: its 95\N{NO-BREAK SPACE}% interval "
        "(bootstrap over seeds). Adam, lr 0.01, nine pairs an update, drawn with replacement; uniform reference. After "
        "Azar et al. 2023."
    )
    titles = [f"{NAMES[loss]}, τ = {tau:g}" for loss, tau in cells]
    with sheet(titles, "updates", [Panel("π(action)", 26.0)], [keys], note) as on:
        for ax, (loss, tau) in zip(on.axes, cells, strict=True):
            own = curves[(curves["loss"] == loss) & (curves["tau"] == tau)]
            for k, action in enumerate(ACTIONS):
                by_step = own.pivot(index="seed", columns="step", values=action)
                ends = np.array([mean_interval(values) for values in by_step.to_numpy().T])
                frame = pd.DataFrame({"step": by_step.columns, "mean": by_step.mean().to_numpy()})
                frame["low"], frame["high"] = ends.T
                d.draw_curve(ax, frame, Look(COLOURS[k], MARKERS[k]), (k, len(ACTIONS)))
                if loss == "ipo":
                    ax.axhline(optimum(data, tau)[k], color=COLOURS[k], **dashes)  # type: ignore[arg-type]
            ax.set_ylim(-0.05, 1.05)
            ax.yaxis.set_major_locator(FixedLocator([0.0, 0.5, 1.0]))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    return on.figure
