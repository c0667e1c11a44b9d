"""Rankings drawn from known utilities (Plackett-Luce), learned by listwise and by pairwise losses: the same rankings.

What theory expects. ListMLE is the maximum-likelihood estimator of the model the rankings were drawn from, so with many
of them nothing beats it. Any two of a ranking are a Bradley-Terry comparison, so the logistic loss over all pairs finds
the same utilities, a little less efficiently. The list softmax sees only who is first. The best against the worst of a
list is no Bradley-Terry comparison: DPO on these overrates the gap.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import kendalltau

from analysis import gold
from analysis.figures import draw as d
from analysis.figures.looks import NAMES, of_losses
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import t_interval
from analysis.sweep import as_dicts
from experiments.study import Drawings, Frames, Number, Sweeps, Verdict

COLUMNS = ("log_pi/*/*",)
LISTWISE, PAIRWISE = ("list_mle", "list_softmax", "lambda_loss"), ("pair_logistic", "pair_hinge", "dpo")
ALL_PAIRS = "pair_logistic"
KL = 0.25  # nats at which rewards are compared; the optima have 0.17 to 0.5
EARLY = 0.1  # the same well before they are reached

Array = npt.NDArray[np.float64]


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """runs: one row a run. regret, last: of the RLHF objective at beta 1, at its best update and at the last [nats];
    reward, early: mean gold reward where the path first reaches `KL` and `EARLY`, NaN if it never does; tau: Kendall's,
    of implied rewards and utilities, at the best update. optimum: the largest reward at `KL`.
    """
    rows = []
    for sweep in sweeps.values():
        histories = dict([*sweep.history.groupby("run", sort=False)])
        for run in as_dicts(sweep.runs):
            tables, actions = int(run["data.prompts"]), int(run["data.responses"])
            known = gold.of_run(run, tables)
            cells = [f"log_pi/{x}/{k}" for x in range(tables) for k in range(actions)]
            log_pi = histories[run["id"]][cells].to_numpy().reshape(-1, tables, actions)
            rows.append(
                {
                    "loss": run["loss.name"],
                    "responses": actions,
                    "rankings": int(run["data.rankings"]),
                    "seed": int(run["data.seed"]),
                }
                | _quality(log_pi, known)
            )
    return {"runs": pd.DataFrame(rows), "asymptotic": pd.DataFrame(_asymptotic(rows))}


def _quality(log_pi: Array, known: gold.Gold) -> dict[str, float]:
    """Of a path [T, X, K]."""
    reward, kl = gold.reward_and_kl(log_pi, known)
    # Largest R - KL: the log of what e^u averages under the reference, where pi is the reference times e^u.
    best = float(np.logaddexp.reduce(known.log_ref + known.reward, axis=-1).mean())
    regret = best - (reward - kl)
    at = int(regret.argmin())
    taus = [kendalltau(mine, true).statistic for mine, true in zip(log_pi[at], known.reward, strict=True)]
    frontier_reward, frontier_kl = gold.frontier(known, np.geomspace(0.3, 30, 100))
    return {
        "regret": float(regret[at]),
        "update": at,
        "last": float(regret[-1]),
        "reward": _reward_at(KL, reward, kl),
        "early": _reward_at(EARLY, reward, kl),
        "optimum": float(np.interp(KL, frontier_kl[::-1], frontier_reward[::-1])),
        "tau": float(np.mean(taus)),
    }


def _reward_at(at: float, reward: Array, kl: Array) -> float:
    """Where the path first has that KL; NaN if it never has."""
    there = np.flatnonzero(kl >= at)
    if not len(there):
        return np.nan
    between = slice(there[0] - 1, there[0] + 1)
    return float(np.interp(at, kl[between], reward[between]))


def _asymptotic(rows: list[dict[str, float]]) -> Iterator[dict[str, float | str]]:
    """Regret once trained to the end, to first order in 1/rankings, of lists short enough to enumerate."""
    for responses, rankings, seed in dict.fromkeys((r["responses"], r["rankings"], r["seed"]) for r in rows):
        if responses > 4:
            continue
        utilities = gold.ranked_utilities(prompts=8, responses=int(responses), spread=1.0, seed=int(seed))
        for loss in ("list_mle", "pair_logistic", "list_softmax"):
            regret = float(np.mean([asymptotic_regret(u, loss) for u in utilities])) / rankings
            yield {"loss": loss, "responses": responses, "rankings": rankings, "seed": seed, "regret": regret}


def asymptotic_regret(utility: Array, loss: str) -> float:
    """n times E KL(pi, pi*), n rankings large, of pi* = softmax(utility) [K]: trace(F C) / 2, F the information of pi*.

    C = H^-1 J H^-1, J the covariance of one ranking's gradient and H the mean of its Hessian, both exact over all K!
    rankings (Huber 1967). With ListMLE H = J; of the list softmax H = J = F, so that the regret is (K - 1)/2.
    """
    size = len(utility)
    orders = np.array([*itertools.permutations(range(size))])
    weight = np.exp(utility)
    left = np.cumsum(weight[orders][:, ::-1], axis=1)[:, ::-1]  # of those not yet ranked, at each rank
    probability = np.prod(weight[orders] / left, axis=1)
    every = np.arange(len(orders))
    gradient, hessian = np.zeros((len(orders), size)), np.zeros((size, size))
    if loss == "pair_logistic":
        rank = np.argsort(orders, axis=1)
        for i, j in itertools.combinations(range(size), 2):
            wins = 1 / (1 + np.exp(utility[j] - utility[i]))
            off = wins - (rank[:, i] < rank[:, j])
            gradient[:, i] += off
            gradient[:, j] -= off
            side = np.eye(size)[i] - np.eye(size)[j]
            hessian += wins * (1 - wins) * np.outer(side, side)
    else:
        for place in range(size - 1 if loss == "list_mle" else 1):
            next_is = np.zeros((len(orders), size))
            for later in range(place, size):
                next_is[every, orders[:, later]] = weight[orders[:, later]] / left[:, place]
            gradient += next_is
            gradient[every, orders[:, place]] -= 1
            hessian += np.diag(probability @ next_is) - (next_is * probability[:, None]).T @ next_is
    inverse = np.linalg.pinv(hessian, hermitian=True)
    covariance = inverse @ (gradient * probability[:, None]).T @ gradient @ inverse
    pi = weight / weight.sum()
    return float(np.trace((np.diag(pi) - np.outer(pi, pi)) @ covariance)) / 2


def check(frames: Frames) -> list[Verdict]:
    runs = frames["runs"]
    cells = sorted(set(zip(runs["responses"], runs["rankings"], strict=True)))
    level = 1 - 0.05 / (len(cells) * len(LISTWISE) * len(PAIRWISE))
    beaten: dict[tuple[str, str], list[tuple[int, int]]] = {}
    numbers = []
    for responses, rankings in cells:
        own = runs[(runs["responses"] == responses) & (runs["rankings"] == rankings)]
        regret, reward, early, tau = (
            own.pivot(index="seed", columns="loss", values=name) for name in ("regret", "reward", "early", "tau")
        )
        where = f"{responses} responses, {rankings} ranking{'s' if rankings > 1 else ''} a prompt"
        for loss in (*LISTWISE, *PAIRWISE):
            numbers.append(_mean(f"regret at the best update, {NAMES[loss]}, {where} (nats)", regret[loss]))
        for mine, other in itertools.product(LISTWISE, PAIRWISE):
            gap = regret[mine] - regret[other]
            if t_interval(gap, level)[1] < 0 and (reward[mine] - reward[other]).mean() > 0:
                beaten.setdefault((mine, other), []).append((responses, rankings))
        against = f"{NAMES[LISTWISE[0]]} less {NAMES[ALL_PAIRS]}, {where}"
        for values, what in (
            (regret, f"regret, {against} (nats)"),
            (reward, f"gold reward at KL {KL:g}, {against}"),
            (early, f"gold reward at KL {EARLY:g}, {against}"),
            (tau, f"Kendall's tau at the best update, {against}"),
        ):
            numbers.append(_mean(what, values[LISTWISE[0]] - values[ALL_PAIRS]))
    numbers += _against_theory(runs, frames["asymptotic"])
    short = float(runs["reward"].isna().mean())
    said = _in_words(beaten, len(cells)) + (
        f" {short:.0%} of the runs never reach a KL of {KL:g} and are not compared at it." if short else ""
    )
    if len(beaten) == len(LISTWISE) * len(PAIRWISE) and all(len(those) == len(cells) for those in beaten.values()):
        return [Verdict("C14", "holds", said, tuple(numbers))]
    if any(other == ALL_PAIRS for _, other in beaten):
        return [Verdict("C14", "holds under conditions", said, tuple(numbers))]
    return [Verdict("C14", "refuted", said, tuple(numbers))]


def _in_words(beaten: dict[tuple[str, str], list[tuple[int, int]]], cells: int) -> str:
    """Which listwise loss beats which pairwise one, and where."""
    parts = []
    for mine in LISTWISE:
        against = []
        for other in PAIRWISE:
            where = beaten.get((mine, other), [])
            by_length = itertools.groupby(where, key=lambda cell: cell[0])
            said = "; ".join(
                f"{length} responses: {' and '.join(str(rankings) for _, rankings in group)} rankings a prompt"
                for length, group in by_length
            )
            against += [f"{NAMES[other]} ({'everywhere' if len(where) == cells else said})"] if where else []
        parts.append(f"{NAMES[mine]} beats {', '.join(against) or 'no pairwise loss'}.")
    return " ".join(parts)


def _against_theory(runs: pd.DataFrame, asymptotic: pd.DataFrame) -> list[Number]:
    """The regret after the last update, where rankings are many, beside what first-order theory says."""
    if asymptotic.empty:
        return []
    most = asymptotic["rankings"].max()
    numbers = []
    for (loss, responses), expected in asymptotic[asymptotic["rankings"] == most].groupby(["loss", "responses"]):
        own = runs[(runs["loss"] == loss) & (runs["responses"] == responses) & (runs["rankings"] == most)]
        what = f"regret after the last update, {NAMES[str(loss)]}, {responses} responses, {most} rankings (nats)"
        numbers.append(_mean(what, own["last"], float(expected["regret"].mean())))
    return numbers


def _mean(quantity: str, values: "pd.Series[float]", expected: float | None = None) -> Number:
    return Number(quantity, float(values.mean()), *t_interval(values), expected=expected)


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {"regret": lambda: _draw(frames["runs"])}


def _draw(runs: pd.DataFrame) -> Figure:
    """Regret and gold reward against the number of rankings, a line for each loss."""
    losses = [loss for loss in (*LISTWISE, *PAIRWISE) if loss in set(runs["loss"])]
    look = of_losses(losses)
    keys = [
        Line2D(
            [],
            [],
            color=look[loss].colour,
            marker=look[loss].marker,
            linewidth=d.WIDTH,
            linestyle=_line(loss),
            label=NAMES[loss] + (", best and worst" if loss == "dpo" else ""),
            **d.MARKER,
        )
        for loss in losses
    ]
    lengths, counts = sorted(runs["responses"].unique()), sorted(runs["rankings"].unique())
    seeds = runs["seed"].nunique()
    note = (
        f"Mean of {seeds} seeds, 8 prompts each; bars: 95\N{NO-BREAK SPACE}% interval (t). Regret: of R − KL, at each "
        f"loss's best update. Reward given up: what the best policy of KL {KL:g} nats has more, where the path has "
        "that KL. Full lines: listwise; dashed: pairwise. Losses stand side by side."
    )
    panels = [Panel("regret (nats)", 34.0), Panel("reward given up", 34.0)]
    titles = [f"{length} responses" for length in lengths]
    with sheet(titles, "rankings of a prompt (log scale)", panels, [keys], note) as on:
        on.axes[0].set_xscale("log")
        on.axes[0].xaxis.set_major_locator(FixedLocator(counts))
        on.axes[0].xaxis.set_minor_locator(NullLocator())
        on.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        for nth in range(2):
            for ax, length in zip(on.of(nth, 2), lengths, strict=True):
                ax.set_yscale("log")
                ax.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
                for i, loss in enumerate(losses):
                    own = runs[(runs["loss"] == loss) & (runs["responses"] == length)]
                    values = own["regret"] if nth == 0 else own["optimum"] - own["reward"]
                    by_count = values.groupby(own["rankings"])
                    mean = by_count.mean()
                    half = np.array([t_interval(those)[1] for _, those in by_count]) - mean.to_numpy()
                    aside = mean.index.to_numpy() * 1.06 ** (i - (len(losses) - 1) / 2)
                    ax.errorbar(
                        aside,
                        mean,
                        half,
                        color=look[loss].colour,
                        marker=look[loss].marker,
                        linewidth=d.WIDTH * 0.6,
                        linestyle=_line(loss),
                        elinewidth=0.6,
                        **d.MARKER,
                    )
    return on.figure


def _line(loss: str) -> tuple[float, Sequence[float]]:
    return (0, ()) if loss in LISTWISE else (0, (2.2, 1.2))
