"""KL(policy, reference) of DPO and IPO on preferences of a known reward: exact optimum, table, toy Llama."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis import beside_history, collapse
from analysis.figures import draw as d
from analysis.figures.looks import NAMES, of_losses, shade
from analysis.figures.sheet import Panel, sheet
from analysis.gold import token_utilities
from analysis.sweep import Sweep
from experiments.study import Drawings, Frames, Number, Sweeps, Verdict
from src.theory.bandit import kl_reward_frontier

Array = npt.NDArray[np.float64]
COLUMNS = collapse.COLUMNS[:10]
BUDGET, BETA = 0.05, 0.1  # nats
HEALTHY = ("none", "displacement")
MODELS = {"table": "table", "llama": "toy Llama"}
SETTING = ["model", "loss", "beta", "spread", "comparisons"]


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """runs: one row a run: its setting, seed, label, healthy, kl (when the reward margin stops rising), kl_most (of all
    times), tokens (of a response), optimum (KL of the exact optimum, on the table).
    """
    return {"runs": pd.concat([_runs(name, sweep) for name, sweep in sweeps.items()], ignore_index=True)}


def _runs(name: str, sweep: Sweep) -> pd.DataFrame:
    runs, model = sweep.runs, "llama" if name == "llama" else "table"
    labels = collapse.verdicts(runs, sweep.history)["label"].reindex(runs.index)
    found = _of_answers(sweep) if model == "llama" else _of_tables(sweep)
    table = pd.DataFrame(
        {
            "model": model,
            "loss": runs["loss.name"],
            "beta": runs["beta"],
            "spread": runs["data.spread"].astype(float),
            "comparisons": runs["data.comparisons"].astype(int) * runs["data.prompts"].astype(int),
            "seed": runs["seed"],
            "label": labels.astype(object),
            "healthy": labels.isin(HEALTHY) & (runs["state"] == "finished"),
            "tokens": runs["chosen_tokens"].astype(float),
        }
    ).join(found)
    return table.assign(optimum=[_optimum(row) for row in table.to_dict("records")])


def _of_tables(sweep: Sweep) -> pd.DataFrame:
    """By run: exact KL at the first update from which the margin is within 1 % of its last value, and the largest."""
    rows = {}
    for run, own in sweep.history.groupby("run", sort=False):
        u, kl = own["rewards/margins"].to_numpy(), own["exact/kl"].to_numpy()
        away = np.flatnonzero(np.abs(u - u[-1]) > 0.01 * np.abs(u[-1]))
        rows[run] = {"kl": kl[min(away[-1] + 1, len(kl) - 1) if len(away) else 0], "kl_most": kl.max()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _of_answers(sweep: Sweep) -> pd.DataFrame:
    """By run: k3 of the policy's own answers where the held-out reward margin is largest, and the largest k3."""
    rows = {}
    for run, own in beside_history.evaluations(sweep).rows.groupby("run", sort=False):
        margins, kl = own["eval/rewards/margins"].to_numpy(), own["eval/kl_k3"].to_numpy()
        rows[run] = {"kl": kl[margins.argmax()], "kl_most": kl.max()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _optimum(row: Mapping[Any, Any], actions: int = 8) -> float:
    """KL of ref exp(reward/beta)/Z on the table: what DPO tends to with the number of comparisons."""
    if row["model"] != "table":
        return math.nan
    utilities = token_utilities(vocabulary=actions, spread=row["spread"], seed=row["seed"])
    return float(kl_reward_frontier(np.full(actions, 1 / actions), utilities, row["beta"]).kl[0])


def largest_spread(beta: float, budget: float = BUDGET) -> float:
    """The standard deviation of the reward under the reference up to which the optimum keeps to the budget (nats).

    KL(pi_beta, ref) = Var(r)/(2 beta^2) to second order in r/beta.
    """
    return beta * math.sqrt(2 * budget)


def check(frames: Frames) -> list[Verdict]:
    runs = frames["runs"]
    healthy = runs[runs["healthy"]]
    numbers, within = [], {}
    for key, own in healthy.groupby(SETTING, sort=False):
        model, loss, beta, spread, comparisons = key
        what = (
            f"{MODELS[str(model)]}, {NAMES[str(loss)]}, beta {beta:g}, spread {spread:g}, {comparisons:,} comparisons"
        )
        optimum = float(own["optimum"].mean()) if loss == "dpo" and model == "table" else None
        numbers.append(Number.mean(f"KL when the margin stops rising, {what} (nats a response)", own["kl"], optimum))
        if model == "llama":
            numbers.append(Number.mean(f"the same, nats a token, {what}", own["kl"] / own["tokens"]))
        if beta == BETA:
            within[what] = bool((own["kl_most"] <= BUDGET).all())
    at = healthy[healthy["beta"] == BETA]
    share = (at["kl_most"] <= BUDGET).groupby(at["seed"]).mean()
    numbers.append(Number.mean(f"share of healthy runs at beta {BETA:g} within {BUDGET:g} nats", share, 1.0))
    per_token = (at["kl_most"] / at["tokens"] <= BUDGET).groupby(at["seed"]).mean()
    numbers.append(Number.mean(f"share of them within {BUDGET:g} nats a token", per_token))
    unmarked = at[at["label"] == "none"]
    numbers.append(Number("share of them without displacement", len(unmarked) / len(at)))
    if len(unmarked):
        numbers.append(Number("of these, share within the budget", float((unmarked["kl_most"] <= BUDGET).mean())))
    numbers.append(Number("s.d. of the reward up to which the optimum keeps to it, beta 0.1", largest_spread(BETA)))
    where = [what for what, yes in within.items() if yes]
    strict = (
        f"{len(unmarked)} of them show no displacement either, of which {share_of(unmarked['kl_most'] <= BUDGET)} stay "
        "within: where all responses are drawn as from the reference, the chosen ones' mean log-ratio is "
        "h/2 - KL(reference, policy), and that is below 0 at the exact optimum too. "
        if len(unmarked)
        else ""
    )
    said = (
        f"Of {len(at)} healthy runs at beta {BETA:g} {share_of(at['kl_most'] <= BUDGET)} stay within {BUDGET:g} nats a "
        f"response, and {share_of(at['kl_most'] / at['tokens'] <= BUDGET)} within {BUDGET:g} nats a token. {strict}"
        "The optimum that DPO tends to has a KL of about Var(reward)/(2 beta^2): within the budget only for rewards "
        f"that spread by less than {largest_spread(BETA):.3f} under the reference, where the better response wins "
        f"about {1 / (1 + math.exp(-largest_spread(BETA) * math.sqrt(2))):.0%} of comparisons. With few comparisons "
        "the luck of the labels alone takes DPO further than that."
    )
    if not where:
        return [Verdict("C18", "refuted", f"At no setting. {said}", tuple(numbers))]
    if len(where) < len(within):
        return [Verdict("C18", "holds under conditions", f"Only at: {'; '.join(where)}. {said}", tuple(numbers))]
    return [Verdict("C18", "holds", said, tuple(numbers))]


def share_of(those: "pd.Series[bool]") -> str:
    return f"{those.mean():.0%}"


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {"kl_by_spread": lambda: _draw(frames["runs"])}


def _draw(runs: pd.DataFrame) -> Figure:
    """Every run's KL against the spread of the rewards, with the optimum and the budget."""
    betas, counts = sorted(runs["beta"].unique()), sorted(runs["comparisons"].unique())
    losses = ["dpo", "ipo"]
    looks = of_losses(losses)
    colours = {(x, beta): shade(looks[x].colour, i, len(betas)) for x in losses for i, beta in enumerate(betas)}
    dashed: Any = (0, (4, 2.5))
    keys = [
        Line2D([], [], color=colour, linewidth=3, label=f"{NAMES[loss]} β = {beta:g}")
        for (loss, beta), colour in colours.items()
    ]
    marks = [
        Line2D([], [], color="0.4", marker="o^v"[i], linestyle="", label=f"{count:,} comparisons", **d.MARKER)
        for i, count in enumerate(counts)
    ] + [
        Line2D([], [], color="0.4", linewidth=d.WIDTH, label="exact optimum"),
        Line2D([], [], color="black", linewidth=0.8, linestyle=dashed, label=f"{BUDGET:g} nats"),
    ]  # fmt: skip
    if not runs["healthy"].all():
        marks.append(Line2D([], [], color="0.4", marker="x", linestyle="", markersize=4.0, label="collapsed"))
    note = (
        "A point is a run (a seed), when its reward margin stops rising; losses and betas stand side by side. KL of "
        "whole responses: of 1 token on the table, of 4 of the Llama. Line: mean over seeds "
        "of the exact optimum under the true reward."
    )
    spreads, shown = sorted(runs["spread"].unique()), runs["kl"].clip(lower=1e-4)
    titles = ["Table" if model == "table" else "Toy Llama" for model in MODELS]
    panels = [Panel("KL to reference (nats)", 52.0)]
    with sheet(titles, "spread of a token's worth (s.d., log scale)", panels, [keys, marks], note) as on:
        on.axes[0].set_xscale("log")
        on.axes[0].xaxis.set_major_locator(FixedLocator(spreads))
        on.axes[0].xaxis.set_minor_locator(NullLocator())
        on.axes[0].xaxis.set_major_formatter(FuncFormatter(d.plain))
        for ax, model in zip(on.axes, MODELS, strict=True):
            ax.set_yscale("log")
            ax.set_ylim(shown.min() / 1.5, 1.5 * shown.max())
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
            ax.axhline(BUDGET, color="black", linewidth=0.8, linestyle=dashed, zorder=2)
            for n, ((loss, beta), colour) in enumerate(colours.items()):
                own = runs[(runs["model"] == model) & (runs["loss"] == loss) & (runs["beta"] == beta)]
                if model == "table" and loss == "dpo":
                    best = own.groupby("spread")["optimum"].mean()
                    ax.plot(best.index, best, color=colour, linewidth=d.WIDTH, zorder=2.5)
                for j, count in enumerate(counts):
                    at = own[own["comparisons"] == count]
                    aside = 1 + 0.14 * (n - 1.5) + 0.06 * (j - 1)
                    for healthy, marker in ((True, "o^v"[j]), (False, "x")):
                        those = at[at["healthy"] == healthy]
                        place = (those["spread"] * aside, shown[those.index])
                        ax.plot(*place, marker, color=colour, markersize=3.5, zorder=3)
    return on.figure
