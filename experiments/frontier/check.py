"""Reward against KL on one prompt of 32 answers: how near to the exact frontier losses come, and where they end.

Rafailov et al. 2023 (arXiv 2305.18290), Fig. 2, compare methods so. Here each answer is a token whose reward is known,
a standard normal number, and the reference is uniform: the frontier is exact. KL in nats, rewards less the reference's.
"""

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import binomtest

from analysis import gold
from analysis.figures import draw as d
from analysis.figures import frontier
from analysis.figures.looks import LOOKS, NAMES, of_losses
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import mean_interval
from analysis.sweep import as_dicts
from experiments.study import Drawings, Frames, Number, Outcome, Sweeps, Verdict
from src.theory.bandit import softmax

Array = npt.NDArray[np.float64]
COLUMNS = ("log_pi/0/*",)
REACH = 2.0  # nats, to which areas are taken; the best answer alone has log 32 = 3.5
GRID = np.linspace(0.0, REACH, 201)
ABOVE = 1e-9
DROP = 0.01
STILL = 1e-3
MORE = 0.01
FACTOR = 2.0


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """runs: one row a run: where its reward was greatest, where it ended, how far from the frontier it was; least_gap:
    the smallest distance below it. areas: by labels, loss and seed. regret: of runs with more and more comparisons.
    """
    rows, regrets, problems = [], [], {}
    reached: dict[tuple[str, str, int], list[Array]] = defaultdict(list)
    for name, sweep in sweeps.items():
        by_run = sweep.history.groupby("run", sort=False).indices
        logs = sweep.history[[f"log_pi/0/{k}" for k in range(int(sweep.runs["model.actions"].iloc[0]))]].to_numpy()
        for run in as_dicts(sweep.runs):
            problem = gold.of_run(run, tables=1)
            reward, kl = gold.reward_and_kl(logs[by_run[run["id"]]][:, None], problem)
            start = float(problem.reward.mean())
            setting = {"labels": run["data.labels"], "loss": run["loss.name"], "beta": run["beta"], "seed": run["seed"]}
            rows.append({"sweep": name} | setting | _path(reward, kl, problem))
            if name == "comparisons":
                n, beta = int(run["data.comparisons"]), float(run["beta"])
                (best,), (far,) = gold.frontier(problem, [beta])
                lost = (best - beta * far) - (reward[-1] - beta * kl[-1])
                expected = regret_constant(problem.reward[0], beta) / n
                regrets.append(setting | {"n": n, "regret": lost, "expected": expected})
                continue
            key = (setting["labels"], setting["loss"], setting["seed"])
            reached[key].append(_up_to(reward - start, kl))
            problems[setting["seed"]] = gold.most_reward(problem, GRID) - start
    areas = [
        {"labels": labels, "loss": loss, "seed": seed, "area": np.maximum.reduce(those).sum() / problems[seed].sum()}
        for (labels, loss, seed), those in reached.items()
    ]
    return {"runs": pd.DataFrame(rows), "areas": pd.DataFrame(areas), "regret": pd.DataFrame(regrets)}


def _path(reward: Array, kl: Array, problem: gold.Gold) -> dict[str, float]:
    gap, peak, before = gold.most_reward(problem, kl) - reward, int(reward.argmax()), int(0.9 * (len(kl) - 1))
    return {
        "drop": float(reward[peak] - reward[-1]),
        "peak_at": float(peak),
        "gap": float(gap[-1]),
        "gap_at_peak": float(gap[peak]),
        "least_gap": float(gap.min()),
        "kl": float(kl[-1]),
        "kl_change": float(kl[-1] / kl[before] - 1),
    }


def _up_to(reward: Array, kl: Array) -> Array:
    """The most reward of a path's points up to each KL of `GRID`; the start, 0, is one of them."""
    order = np.argsort(kl)
    best = np.maximum.accumulate(reward[order])
    found = np.searchsorted(kl[order], GRID, side="right")
    return np.where(found > 0, best[np.maximum(found, 1) - 1], 0.0)


def regret_constant(reward: Array, beta: float) -> float:
    """n times the expected regret of DPO's optimum after n comparisons, for large n: tr(Cov F^-1)/(2 beta).

    Any policy's regret in J = reward - beta KL is beta KL(policy, pi_beta), to second order Var(error)/(2 beta) under
    pi_beta, with the error of the estimated rewards, whose covariance is F^-1/n. F: Fisher information of one
    comparison of two different answers, each pair as likely. reward: [V]; the reference is uniform.
    """
    pi = softmax(reward / beta)
    covariance = np.diag(pi) - np.outer(pi, pi)
    won = 1 / (1 + np.exp(-(reward[:, None] - reward)))
    weights = won * won.T / (len(reward) * (len(reward) - 1) / 2)
    np.fill_diagonal(weights, 0.0)
    fisher = np.diag(weights.sum(1)) - weights
    return float(np.trace(covariance @ np.linalg.pinv(fisher, hermitian=True)) / (2 * beta))


def check(frames: Frames) -> list[Verdict]:
    runs = frames["runs"]
    trained = runs[runs["sweep"] != "comparisons"]
    return [_bound(runs), _recovered(frames["regret"]), _certain(trained), _area(frames["areas"])]


def _bound(runs: pd.DataFrame) -> Verdict:
    least = float(runs["least_gap"].min())
    said = f"{len(runs)} runs, every update: the nearest is {least:.1e} below the frontier."
    outcome: Outcome = "holds" if least >= -ABOVE else "refuted"
    return Verdict("frontier-bound", outcome, said, (Number("least distance below the frontier", least),))


def _recovered(regret: pd.DataFrame) -> Verdict:
    numbers, good = [], {}
    for beta, own in regret.groupby("beta"):
        means = own.groupby("n")[["regret", "expected"]].mean()
        for n, those in own.groupby("n"):
            numbers.append(
                Number.mean(f"regret, beta {beta:g}, n {n:,}", those["regret"], float(those["expected"].mean()))
            )
        ratio = float(means["regret"].iloc[-1] / means["expected"].iloc[-1])
        good[f"{beta:g}"] = bool((means["regret"].diff().dropna() < 0).all()) and 1 / FACTOR <= ratio <= FACTOR
        numbers.append(Number(f"regret over its closed form, largest n, beta {beta:g}", ratio, expected=1.0))
    where = [beta for beta, yes in good.items() if yes]
    said = (
        f"So at beta {', '.join(where) or 'none'}. The regret is that of estimated rewards: it falls like 1/n, and "
        "neither the frontier nor the loss is what keeps a policy from its optimum, but the number of labels."
    )
    outcome: Outcome = "holds" if all(good.values()) else "holds under conditions" if where else "refuted"
    return Verdict("frontier-recovered", outcome, said, tuple(numbers))


def _certain(runs: pd.DataFrame) -> Verdict:
    numbers, passed, shares = [], {}, defaultdict(list)
    for loss in ("dpo", "ipo"):
        for (labels, beta), own in runs[runs["loss"] == loss].groupby(["labels", "beta"]):
            what = f"{NAMES[loss]}, {labels} labels, beta {beta:g}"
            over = (own["drop"] > DROP) & (own["gap"] > own["gap_at_peak"])
            low, high = binomtest(int(over.sum()), len(over)).proportion_ci(0.95)
            numbers.append(Number(f"share of seeds past their peak of reward, {what}", float(over.mean()), low, high))
            shares[loss, labels].append(float(over.mean()))
            numbers.append(Number.mean(f"fall from the peak of reward, {what}", own["drop"]))
            numbers.append(Number.mean(f"distance below the frontier at the end, {what}", own["gap"]))
            numbers.append(Number.mean(f"KL at the end, {what} (nats)", own["kl"]))
            if labels == "certain" and loss == "dpo":
                passed[f"{beta:g}"] = (int(over.sum()), len(over))
    ipo = runs[(runs["loss"] == "ipo") & (runs["labels"] == "certain")]
    still = bool((ipo["kl_change"].abs() < STILL).all())
    said = "; ".join(f"in {seen} of {of} seeds at beta {beta}" for beta, (seen, of) in passed.items())
    said = (
        f"DPO passes its peak {said}. Certain labels rank answers only as far as they were compared: of several that "
        "never lost DPO picks one, and where that is not the best its reward falls. "
        f"IPO {'stops' if still else 'goes on moving'}; it is past its own peak in "
        f"{np.mean(shares['ipo', 'certain']):.0%} of runs. With labels drawn from Bradley-Terry DPO is in "
        f"{np.mean(shares['dpo', 'sampled']):.0%} of runs, IPO in {np.mean(shares['ipo', 'sampled']):.0%}."
    )
    outcome: Outcome = "holds under conditions"
    if not still or not any(seen for seen, _ in passed.values()):
        outcome = "refuted"
    elif all(seen == of for seen, of in passed.values()):
        outcome = "holds"
    return Verdict("frontier-certain", outcome, said, tuple(numbers))


def _area(areas: pd.DataFrame) -> Verdict:
    wide, certain = (
        areas[areas["labels"] == labels].pivot(index="seed", columns="loss", values="area")
        for labels in ("sampled", "certain")
    )
    others = [loss for loss in wide if loss != "dpo"]
    numbers = [Number.mean(f"share of the frontier's area, {NAMES[str(loss)]}", wide[loss]) for loss in wide]
    numbers += [Number.mean(f"the same, {NAMES[str(loss)]} less DPO", wide[loss] - wide["dpo"]) for loss in others]
    numbers += [
        Number.mean(f"the same, {NAMES[str(loss)]} less DPO, certain labels", certain[loss] - certain["dpo"])
        for loss in others
    ]
    ahead = [str(loss) for loss in others if (wide[loss] - wide["dpo"]).mean() > MORE]
    less = (wide[others].sub(wide["dpo"], axis=0)).mean()
    said = (
        f"DPO has {wide['dpo'].mean():.2f} of the exact area, between {wide['dpo'].min():.2f} and "
        f"{wide['dpo'].max():.2f} by what labels were drawn; the other losses are {less.min():+.3f} to "
        f"{less.max():+.3f} from it on the same labels."
    )
    if ahead:
        said += f" Ahead of DPO: {', '.join(NAMES[loss] for loss in ahead)}."
    return Verdict("frontier-area", "refuted" if ahead else "holds", said, tuple(numbers))


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {
        "certain_labels": lambda: _trajectories(sweeps, "certain"),
        "sampled_labels": lambda: _trajectories(sweeps, "sampled"),
        "areas": lambda: _draw_areas(frames["areas"]),
        "regret": lambda: _draw_regret(frames["regret"]),
    }


def _trajectories(sweeps: Sweeps, labels: str) -> Figure:
    """Of the first seed, which has one frontier."""
    both = [sweeps["family"], sweeps["ipo"]]
    runs = pd.concat([sweep.runs for sweep in both])
    runs = runs[(runs["data.labels"] == labels) & (runs["seed"] == runs["seed"].min())]
    history = pd.concat([sweep.history[sweep.history["run"].isin(runs.index)] for sweep in both], ignore_index=True)
    return frontier.draw(runs, history)


def _draw_areas(areas: pd.DataFrame) -> Figure:
    """A row for each loss: every seed, and the mean with its interval."""
    kinds, losses = ["sampled", "certain"], [*dict.fromkeys(areas["loss"])]
    looks = of_losses(losses)
    note = (
        f"Area under the most reward that a loss reaches up to each KL, any beta and update, 0 to {REACH:g} nats, as a "
        f"share of that under the exact frontier. Small: one of {areas['seed'].nunique()} seeds, each with rewards "
        "and labels of its own; large: mean and its 95\N{NO-BREAK SPACE}% interval (bootstrap over seeds)."
    )
    titles = [f"{labels} labels" for labels in kinds]
    with sheet(titles, "share of the exact area", [Panel("", 4.2 * len(losses) + 4)], [], note) as on:
        for ax, labels in zip(on.axes, kinds, strict=True):
            for place, loss in enumerate(losses):
                own = areas[(areas["labels"] == labels) & (areas["loss"] == loss)]["area"].to_numpy()
                look, (low, high) = looks[loss], mean_interval(own)
                ax.plot(own, np.full(len(own), place), marker="|", linestyle="", color=look.colour, alpha=0.5)
                ax.plot([low, high], [place, place], color=look.colour, linewidth=d.WIDTH, zorder=3)
                ax.plot(own.mean(), place, color=look.colour, marker=look.marker, linestyle="", zorder=4, **d.MARKER)
            ax.yaxis.set_major_locator(FixedLocator(range(len(losses))))
            ax.set_yticklabels([NAMES[loss] for loss in losses])
            ax.set_ylim(len(losses) - 0.5, -0.5)
    return on.figure


def _draw_regret(regret: pd.DataFrame) -> Figure:
    betas = sorted(regret["beta"].unique())
    keys = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="", label=f"β = {beta:g}", **d.MARKER)
        for beta, look in zip(betas, LOOKS, strict=False)
    ]
    keys.append(Line2D([], [], color="0.25", linewidth=0.9, label="tr(Cov F⁻¹)/(2βn)"))
    seeds = regret.groupby(["beta", "n"]).size().iloc[0]
    note = (
        f"DPO with labels drawn from Bradley-Terry; mean over {seeds} seeds and its 95\N{NO-BREAK SPACE}% interval "
        "(bootstrap over seeds). Regret: J = reward − β KL, below that of ref exp(reward/β)."
    )
    with sheet([""], "comparisons, n (log scale)", [Panel("regret (log scale)", 40.0)], [keys], note) as on:
        ax = on.axes[0]
        ax.set_xscale("log")
        ax.set_yscale("log")
        for beta, look in zip(betas, LOOKS, strict=False):
            by_n = regret[regret["beta"] == beta].groupby("n")
            means = by_n[["regret", "expected"]].mean()
            ends = np.array([mean_interval(own["regret"].to_numpy()) for _, own in by_n]).T
            bars = np.abs(ends - means["regret"].to_numpy())
            ax.errorbar(
                means.index, means["regret"], bars, color=look.colour, marker=look.marker, linestyle="", **d.MARKER
            )
            ax.plot(means.index, means["expected"], color=look.colour, linewidth=0.9, zorder=1.9)
        ax.xaxis.set_major_locator(FixedLocator(sorted(regret["n"].unique())))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    return on.figure
