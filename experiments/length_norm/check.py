"""The variance of a loss over pairs, split into what the lengths of the two responses explain and the rest.

At the start every pair has the same loss (but under R-DPO), so losses are compared on the way, at equal shares of their
start. What is measured is the loss of each training pair under the whole policy, from the probes of the runs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import beside_history
from analysis.figures import draw as d
from analysis.figures.looks import NAMES, Look, of_losses, shade
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import mean_interval
from analysis.sweep import as_dicts
from experiments.study import Drawings, Frames, Number, Sweeps, Verdict
from src.data.toy import gold
from src.losses import pairwise
from src.losses.base import PairLogRatios

Array = npt.NDArray[np.float64]
COLUMNS = ("loss",)
RESAMPLES = 5000
LEVELS = (0.9, 0.75, 0.6)  # of the mean loss at the start
NORMALISED = {"dpo": "sigmoid_norm", "ipo": "ipo_avg"}
LOSSES = {name: getattr(pairwise, name) for name in ("dpo", "ipo", "r_dpo", "sigmoid_norm", "ipo_avg")}


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """steps: one row a run and evaluation: mean loss and variances over pairs, relative to the start's mean loss.
    ends: one row a run: slope of the margin on the mean length, at the end. pairs: every pair of one seed at the end.
    """
    steps, ends, pairs = [], [], []
    for sweep in sweeps.values():
        settings = {setting["id"]: setting for setting in as_dicts(sweep.runs)}
        for run, own in beside_history.probes(sweep).rows.groupby("run", sort=False):
            setting = settings[str(run)]
            lengths = _lengths(setting)[: int(own["pair"].max()) + 1]  # the first so many pairs are probed
            loss, seed = str(setting["loss.name"]), int(setting["seed"])
            name: dict[str, Any] = {"loss": loss, "beta": float(setting["beta"]), "seed": seed}
            start = math.nan
            for step, rows in own.groupby("step", sort=True):
                a, b = (rows[f"log_ratio_{which}"].to_numpy() for which in ("chosen", "rejected"))
                losses = of_pairs(loss, a, b, lengths, setting)
                start = losses.mean() if math.isnan(start) else start
                steps.append(name | {"step": step, "mean": losses.mean() / start} | explained(losses / start, lengths))
            size = lengths.mean(1)
            ends.append(name | {"slope": np.polyfit(size, a - b, 1)[0], "margin": (a - b).mean()})
            if seed == 0:
                pairs.append(pd.DataFrame({"size": size, "margin": a - b}).assign(**name))
    return {"steps": pd.DataFrame(steps), "ends": pd.DataFrame(ends), "pairs": pd.concat(pairs, ignore_index=True)}


def _lengths(run: Mapping[str, Any]) -> Array:
    """Response tokens of each training pair, [P, 2]: chosen, rejected."""
    given = {key: run[f"data.{key}"] for key in ("prompts", "held_out", "comparisons", "vocabulary", "prompt_tokens")}
    tokens = json.loads(run["data.response_tokens"])
    data = gold(
        **{key: int(value) for key, value in given.items()}, response_tokens=tokens, seed=int(run["data.seed"]),
        spread=float(run["data.spread"]), labels=run["data.labels"],
    )  # fmt: skip
    return data.lengths.astype(np.float64)


def of_pairs(loss: str, a: Array, b: Array, lengths: Array, run: Mapping[str, Any]) -> Array:
    """The loss of each pair from its log-ratios (nats) and lengths, [P]."""
    ratios = torch.tensor(np.stack([a, b], -1))[None]
    pairs = PairLogRatios(ratios, torch.zeros_like(ratios), torch.tensor(lengths)[None])
    hyper = {"beta": run["beta"]} | ({"alpha": run["loss.alpha"]} if loss == "r_dpo" else {})
    found = LOSSES[loss](
        pairs, **{key: torch.tensor([[float(value)]], dtype=torch.float64) for key, value in hyper.items()}
    )
    return np.asarray(found[0].numpy())


def explained(values: Array, lengths: Array) -> dict[str, float]:
    """The variance of values [P], and how much of it a quadratic in both lengths [P, 2] explains: variance, by_length,
    rest. Each an unbiased estimate where there is no relation: degrees of freedom are taken off.
    """
    x, y = (lengths - lengths.mean(0)).T
    regressors = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1)
    left = values - regressors @ np.linalg.lstsq(regressors, values, rcond=None)[0]
    variance = float(values.var(ddof=1))
    rest = float(left @ left) / (len(values) - regressors.shape[1])
    return {"variance": variance, "by_length": variance - rest, "rest": rest}


def at_levels(steps: pd.DataFrame, levels: Sequence[float] = LEVELS) -> pd.DataFrame:
    """Each run's variances when its mean loss first falls to each level, between evaluations by interpolation.

    Columns: loss, seed, level, variance, by_length; NaN where the run never falls so far.
    """
    parts = []
    for (loss, seed), own in steps.groupby(["loss", "seed"], sort=False):
        ordered = own.sort_values("step")
        fallen = ordered[ordered["mean"] == ordered["mean"].cummin()].drop_duplicates("mean")[::-1]
        part = pd.DataFrame({"loss": loss, "seed": seed, "level": levels})
        for what in ("variance", "by_length"):
            part[what] = np.interp(levels, fallen["mean"], fallen[what], left=np.nan)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def ratio_of_means(above: Array, below: Array) -> tuple[float, float, float]:
    """mean(above)/mean(below) over seeds, paired, and its 95 % bootstrap interval (percentiles, fixed seed)."""
    drawn = np.random.default_rng(0).integers(len(above), size=(RESAMPLES, len(above)))
    low, high = np.quantile(above[drawn].mean(1) / below[drawn].mean(1), [0.025, 0.975])
    return float(above.mean() / below.mean()), float(low), float(high)


def check(frames: Frames) -> list[Verdict]:
    found = at_levels(frames["steps"])
    numbers, smaller = [], {}
    for summed, normalised in NORMALISED.items():
        for level in LEVELS:
            at = [_by_seed(found, name, level) for name in (summed, normalised)]
            both = at[0].join(at[1], lsuffix="_s", rsuffix="_n").dropna()
            what = f"{NAMES[normalised]} over {NAMES[summed]}, mean loss at {level:g} of its start"
            if both.empty:
                smaller[what] = False
                continue
            for name, end in ((summed, "_s"), (normalised, "_n")):
                share = both[f"by_length{end}"] / both[f"variance{end}"]
                numbers.append(Number.mean(f"share of the variance by length, {NAMES[name]}, at {level:g}", share))
            for quantity in ("by_length", "variance"):
                above, below = (both[f"{quantity}{end}"].to_numpy() for end in ("_n", "_s"))
                ratio, low, high = ratio_of_means(above, below)
                said = "variance by length" if quantity == "by_length" else "variance over pairs"
                numbers.append(Number(f"{said}, {what}", ratio, low, high))
                if quantity == "by_length":
                    smaller[what] = high < 1
    for loss, own in frames["ends"].groupby("loss", sort=False):
        beta = float(own["beta"].iloc[0])
        expected = {"ipo": 0.0, "ipo_avg": 1 / (2 * beta)}.get(str(loss))
        what = f"margin a token of mean length at the end, {NAMES[str(loss)]}, beta {beta:g} (nats)"
        numbers.append(Number.mean(what, own["slope"], expected))
    where, not_there = ([what for what, yes in smaller.items() if yes is wanted] for wanted in (True, False))
    middle = found[(found["level"] == LEVELS[1])].assign(share=found["by_length"] / found["variance"])
    shares = ", ".join(f"{NAMES[str(loss)]} {own.mean():.0%}" for loss, own in middle.groupby("loss")["share"])
    said = (
        f"At {LEVELS[1]:g} of the start, lengths explain this much of the variance: {shares}. The variance over all "
        "pairs need not be smaller: see its ratios. IPO on averages has its target per token, so the margin of whole "
        "responses grows with their length: see the slopes."
    )
    if not where:
        return [
            Verdict("C13", "refuted", f"The variance by length is nowhere shown to be smaller. {said}", tuple(numbers))
        ]
    if not_there:
        finding = f"It is smaller for: {'; '.join(where)}. It is not shown to be for: {'; '.join(not_there)}. {said}"
        return [Verdict("C13", "holds under conditions", finding, tuple(numbers))]
    return [Verdict("C13", "holds", f"It is smaller for both, at all three stages. {said}", tuple(numbers))]


def _by_seed(found: pd.DataFrame, loss: str, level: float) -> pd.DataFrame:
    return found[(found["loss"] == loss) & (found["level"] == level)].set_index("seed")[["variance", "by_length"]]


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {
        "variance_by_length": lambda: _draw(frames["steps"]),
        "margin_by_length": lambda: _draw_margins(frames["pairs"]),
    }


def _looks(losses: list[str]) -> dict[str, Look]:
    """Those of the losses; a normalised one that shares its colour with the other is lighter."""
    looks = of_losses(losses)
    for summed, normalised in NORMALISED.items():
        if summed in looks and normalised in looks and looks[summed].colour == looks[normalised].colour:
            looks[normalised] = Look(shade(looks[normalised].colour, 1, 2), looks[normalised].marker)
    return looks


def _keys(losses: list[str]) -> list[Line2D]:
    looks = _looks(losses)
    return [
        Line2D([], [], color=looks[x].colour, marker=looks[x].marker, linewidth=d.WIDTH, label=NAMES[x], **d.MARKER)
        for x in losses
    ]


def _draw(steps: pd.DataFrame) -> Figure:
    """What lengths explain of the variance, and the whole, along training."""
    losses = [x for x in ("dpo", "sigmoid_norm", "r_dpo", "ipo", "ipo_avg") if x in set(steps["loss"])]
    looks, grid = _looks(losses), np.linspace(0.98, 0.4, 30)
    seeds = steps["seed"].nunique()
    note = (
        f"Toy Llama, responses of 1 to 12 tokens, labels certain. Line: mean over {seeds} seeds, at equal mean loss; "
        "band: its 95\N{NO-BREAK SPACE}% bootstrap interval. Normalised losses have 6.5 times the β (0.1)."
    )
    panels = [Panel("s.d. by length / start", 30.0), Panel("share of variance", 30.0)]
    with sheet(
        ["DPO", "IPO"], "mean loss / its start (training runs left to right)", panels, [_keys(losses)], note
    ) as on:
        for ax, what in zip(on.axes, ("sd", "share") * 2, strict=True):
            members = losses[:-2] if ax in on.axes[:2] else losses[-2:]
            for nth, loss in enumerate(members):
                found = at_levels(steps[steps["loss"] == loss], list(grid))
                found["share"] = found["by_length"] / found["variance"]
                found["sd"] = np.sqrt(found["by_length"].clip(lower=0))
                values = found.pivot(index="seed", columns="level", values=what)[list(grid)].to_numpy()
                there = ~np.isnan(values).any(0)
                frame = pd.DataFrame({"step": -grid[there], "mean": values[:, there].mean(0)})
                frame["low"], frame["high"] = np.array([mean_interval(column) for column in values[:, there].T]).T
                d.draw_curve(ax, frame, looks[loss], (nth, len(members)))
            ax.set_ylim(bottom=0)
            ax.xaxis.set_major_formatter(lambda x, _: f"{-x:g}")
    return on.figure


def _draw_margins(pairs: pd.DataFrame) -> Figure:
    """Margins of single pairs against their length at the end of training."""
    losses = [x for x in ("ipo", "ipo_avg") if x in set(pairs["loss"])]
    pairs = pairs[pairs["loss"].isin(losses)]
    looks, betas = _looks(losses), pairs.groupby("loss")["beta"].first()
    along = np.array([pairs["size"].min(), pairs["size"].max()])
    dashed: Any = (0, (4, 2.5))
    keys = [Line2D([], [], color="black", linewidth=0.8, linestyle=dashed, label="where the loss is 0, on average")]
    note = (
        f"A point is one of {len(pairs[pairs['loss'] == losses[0]])} training pairs, seed 0, after the last update. "
        f"IPO's target is 1/(2β) = {1 / (2 * betas['ipo']):.2g} nats (β = {betas['ipo']:g}); IPO avg has one of 1/(2β) "
        f"= {1 / (2 * betas['ipo_avg']):.2g} nats a token (β = {betas['ipo_avg']:g})."
    )
    panels = [Panel("margin h (nats)", 38.0)]
    with sheet([NAMES[x] for x in losses], "mean length of the two responses (tokens)", panels, [keys], note) as on:
        for ax, loss in zip(on.axes, losses, strict=True):
            own, target = pairs[pairs["loss"] == loss], 1 / (2 * betas[loss])
            ax.plot(own["size"], own["margin"], looks[loss].marker, color=looks[loss].colour, markersize=2.0, zorder=3)
            line = target * (along if loss == "ipo_avg" else np.ones(2))
            ax.plot(along, line, color="black", linewidth=0.8, linestyle=dashed, zorder=4)
            ax.set_ylim(pairs["margin"].min() - 0.5, pairs["margin"].max() + 0.5)
    return on.figure
