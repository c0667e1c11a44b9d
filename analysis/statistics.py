"""Seeds -> means, intervals and comparisons. A run is one observation; its steps are not. Pure: frames in, frames out.

Intervals of comparisons are stratified bootstraps (Agarwal et al. 2021, arXiv 2108.13264): seeds are drawn again within
each setting, never across settings. They are percentile intervals, and with fewer than about five seeds a setting they
are too narrow; nothing repairs that but more seeds. All are drawn from an explicit seed: the same gives the same.
(rliable is not used: its StratifiedBootstrap takes a random_state and draws from numpy's global one.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from scipy.special import stdtrit

from analysis.sweep import EVALUATED, PREFERENCE, objectives, settings

OF_A_CURVE = {"seed", "beta", "loss.name", "loss.beta", "objective"}  # these cannot tell two settings apart
# When several columns move together the first of these names the setting.
# Shares, and what cannot be negative: a t interval could leave their range. Of held-out pairs too.
BOUNDED = (
    "rewards/accuracies", "implied_preference", "k2_on_data", "k3_on_data", "kl_k3", "grad_norm", "exact/kl",
    "exact/entropy",
)  # fmt: skip
RESAMPLES = 5000  # of a bootstrap; the ends of an interval then vary by 2 % of its width between seeds
NAMED_FIRST = ("lr", "optimizer.name", "model.name", "data.name", "scheduler.name", "logps")


@dataclass(frozen=True)
class Curve:
    """Runs that differ in nothing but their seed."""

    loss: str
    beta: float  # NaN for a loss without one
    setting: str  # what else tells it from the sweep's other curves, such as "lr = 0.01"; often empty
    ids: tuple[str, ...]
    objective: str = PREFERENCE  # or "reward_model"


def curves(runs: pd.DataFrame) -> list[Curve]:
    """The runs that have a history, grouped. Losses in the sweep's order, betas rising."""
    drawn = runs[runs["rows"] > 0]
    if drawn.empty:
        return []
    drawn = drawn.assign(objective=objectives(drawn))
    axes = _other_axes(drawn)
    order = {loss: position for position, loss in enumerate(dict.fromkeys(drawn["loss.name"]))}
    found = []
    for key, group in drawn.groupby(["loss.name", "beta", "objective", *axes], dropna=False, sort=False):
        loss, beta, objective, *values = cast("tuple[Any, ...]", key)
        setting = ", ".join(
            f"{axis.removesuffix('.name')} = {_short(value)}" for axis, value in zip(axes, values, strict=True)
        )
        one_nan = math.nan if pd.isna(beta) else float(beta)  # one object, so that it equals itself in a key
        found.append(Curve(str(loss), one_nan, setting, tuple(group["id"]), str(objective)))
    settings = {setting: position for position, setting in enumerate(dict.fromkeys(curve.setting for curve in found))}

    def place(curve: Curve) -> tuple[int, int, float, str]:
        beta = math.inf if math.isnan(curve.beta) else curve.beta
        return settings[curve.setting], order[curve.loss], beta, curve.objective

    return sorted(found, key=place)


def set_apart(runs: pd.DataFrame, curve: Curve) -> tuple[Curve | None, list[Curve]]:
    """The curve without its diverged runs (None if that leaves none), and each diverged run as a curve of its own.

    A mean that takes in a run on its way to infinity says nothing about any of them.
    """
    blown = [run for run in curve.ids if runs.loc[run, "state"] == "diverged"]
    steady = tuple(run for run in curve.ids if run not in blown)
    return replace(curve, ids=steady) if steady else None, [replace(curve, ids=(run,)) for run in blown]


def is_bounded(column: str) -> bool:
    """Is it one of `BOUNDED`, in the history or in evaluations?"""
    return column.removeprefix(EVALUATED) in BOUNDED


def over_seeds(history: pd.DataFrame, curve: Curve, column: str) -> pd.DataFrame:
    """Columns step, mean, low, high, n: the mean over a curve's runs and its 95 % interval (NaN where n < 2).

    Student's t; of `BOUNDED` quantities a bootstrap's, whole runs drawn again, which cannot leave their range. A step's
    mean is over the runs that have a finite value there; `n` says how many.
    """
    rows = history.loc[history["run"].isin(curve.ids), ["run", "step", column]].replace([np.inf, -np.inf], np.nan)
    by_step = rows.groupby("step")[column].agg(["mean", "std", "count"]).reset_index()
    n = by_step["count"].to_numpy(dtype=float)
    several = n > 1
    mean = by_step["mean"].to_numpy()
    low, high = np.full(len(n), np.nan), np.full(len(n), np.nan)
    if is_bounded(column) and several.any():
        values = rows.pivot(index="run", columns="step", values=column).to_numpy()[:, several]
        low[several], high[several] = _bootstrap_band(values)
    elif several.any():
        half = stdtrit(n[several] - 1, 0.975) * by_step["std"].to_numpy()[several] / np.sqrt(n[several])
        low[several], high[several] = mean[several] - half, mean[several] + half
    return pd.DataFrame({"step": by_step["step"], "mean": mean, "low": low, "high": high, "n": by_step["count"]})


def interquartile_mean(values: npt.ArrayLike, axis: int = -1) -> Any:
    """The mean of the middle half: a quarter of the values, rounded down, is cut off at each end."""
    return stats.trim_mean(values, 0.25, axis=axis)


def scores(runs: pd.DataFrame, values: "pd.Series[Any]") -> pd.DataFrame:
    """One row for each run that has a finite value: loss, stratum (every setting but loss and seed), seed, value.

    values: one for each run, by id, such as a column of `tables.final`.
    """
    found = curves(runs)
    rows = [
        (run, curve.loss, f"{curve.beta:g}, {curve.setting}, {curve.objective}", runs.loc[run, "seed"], values[run])
        for curve in found
        for run in curve.ids
        if np.isfinite(values[run])
    ]
    return pd.DataFrame(rows, columns=["run", "loss", "stratum", "seed", "value"]).set_index("run")


def aggregate(
    scored: pd.DataFrame, statistic: Callable[..., Any] = interquartile_mean, *, seed: int = 0
) -> pd.DataFrame:
    """For each loss `statistic` (of an array along `axis`) over all its runs, with its 95 % stratified bootstrap
    interval: value, low, high, runs, strata. Without two seeds in every stratum the interval is NaN.
    """
    rows = {}
    for loss, own in scored.groupby("loss", sort=False):
        parts = [part.to_numpy() for _, part in own.groupby("stratum")["value"]]
        low, high = _bootstrap(parts, lambda *drawn, axis: statistic(np.concatenate(drawn, axis), axis=axis), seed=seed)
        value = float(statistic(np.concatenate(parts), axis=-1))
        rows[loss] = {"value": value, "low": float(low), "high": float(high), "runs": len(own), "strata": len(parts)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("loss")


def paired(scored: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """For every two losses the mean difference over the seeds they have in common, setting by setting.

    Columns: loss, other, difference (loss minus other), low, high (95 % stratified bootstrap of the differences),
    n (pairs of runs), p (sign-flip test of no difference, exact up to 13 pairs), p_holm (Holm, over all rows).
    """
    wide = scored.pivot_table(index=["stratum", "seed"], columns="loss", values="value", sort=False)
    rows = []
    for loss, other in combinations(scored["loss"].unique(), 2):
        both = wide[[loss, other]].dropna()
        if both.empty:
            continue
        gap = both[loss] - both[other]
        parts = [part.to_numpy() for _, part in gap.groupby(level="stratum")]
        low, high = _bootstrap(parts, lambda *drawn, axis: np.concatenate(drawn, axis).mean(axis), seed=seed)
        row = {"loss": loss, "other": other, "difference": float(gap.mean()), "low": float(low), "high": float(high)}
        rows.append(row | {"n": len(gap), "p": _sign_flips(both[loss].to_numpy(), both[other].to_numpy(), seed)})
    table = pd.DataFrame(rows, columns=["loss", "other", "difference", "low", "high", "n", "p"])
    table["p_holm"] = holm(table["p"].to_list())
    return table


def improvement(scored: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """For every two losses P(a run of `loss` has the larger value than a run of `other` in the same setting).

    Ties count one half (Mann-Whitney); settings count alike. Columns: loss, other, probability, low, high (95 %
    stratified bootstrap), strata. Only settings that both have.
    """
    rows = []
    for loss, other in combinations(scored["loss"].unique(), 2):
        mine, theirs = (
            dict(iter(scored[scored["loss"] == name].groupby("stratum")["value"])) for name in (loss, other)
        )
        shared = [stratum for stratum in mine if stratum in theirs]
        if not shared:
            continue
        parts = [side[stratum].to_numpy() for stratum in shared for side in (mine, theirs)]
        low, high = _bootstrap(parts, _larger, 2000, seed)
        value = float(_larger(*parts, axis=-1))
        rows.append((loss, other, value, float(low), float(high), len(shared)))
    return pd.DataFrame(rows, columns=["loss", "other", "probability", "low", "high", "strata"])


def holm(p: Sequence[float]) -> list[float]:
    """Holm (1979): p-values that keep the chance of any false finding below the level, whatever their dependence."""
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in corrected]


def _bootstrap(
    parts: Sequence[npt.NDArray[np.float64]],
    statistic: Callable[..., Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Any, Any]:
    """The 95 % percentile interval of a statistic of several samples, each drawn again by itself along axis 0."""
    if any(len(part) < 2 for part in parts):
        return np.nan, np.nan
    found = stats.bootstrap(
        parts, statistic, axis=0, n_resamples=resamples, batch=100, method="percentile", vectorized=True,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return found.confidence_interval.low, found.confidence_interval.high


def mean_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of some seeds, bootstrapped from a fixed seed; NaN for one."""
    if len(values) < 2:
        return math.nan, math.nan
    low, high = np.quantile(_draws(len(values), RESAMPLES) @ values, [0.025, 0.975])
    return float(low), float(high)


def t_interval(values: "pd.Series[float]", level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean over seeds; gaps are left out."""
    half = float(stats.t.ppf((1 + level) / 2, values.count() - 1) * values.std() / math.sqrt(values.count()))
    return float(values.mean()) - half, float(values.mean()) + half


@lru_cache(maxsize=64)
def _draws(n: int, resamples: int) -> npt.NDArray[np.float64]:
    """[resamples, n] the weight of each of n runs in the mean of each resample; the same each time."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), resamples) / n


def _bootstrap_band(values: npt.NDArray[np.float64], resamples: int = 1000) -> npt.NDArray[np.float64]:
    """[runs, steps] with gaps -> [2, steps]: the 95 % percentile interval of the mean of the values that are there.

    A run is drawn with all its steps, and how often it is drawn weighs it; scipy's bootstrap knows no gaps.
    """
    weights = _draws(len(values), resamples)
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # a draw may have none of the runs that go so far
        means = (weights @ np.where(there, values, 0.0)) / (weights @ there)
    band: npt.NDArray[np.float64] = np.nanquantile(means, [0.025, 0.975], axis=0)
    return band


def _larger(*parts: npt.NDArray[np.float64], axis: int) -> Any:
    """Mann-Whitney's share of pairs (x, y) with x > y, for each two samples, averaged."""
    shares = []
    for x, y in zip(parts[::2], parts[1::2], strict=True):
        one, two = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
        shares.append(((one > two) + 0.5 * (one == two)).mean((-1, -2)))
    return np.mean(shares, axis=0)


def _sign_flips(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], seed: int) -> float:
    if len(x) < 2:
        return math.nan
    test = stats.permutation_test(
        (x, y), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True, n_resamples=9999,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(test.pvalue)


def _other_axes(drawn: pd.DataFrame) -> list[str]:
    """The configuration columns, beside loss, beta, objective and seed, needed to tell the sweep's settings apart.

    A column counts if it takes several values among runs of the same loss, beta and objective. Columns that only follow
    one already chosen (`optimizer.lr` follows `lr`), or that follow the loss or the beta, are not needed.
    """
    candidates = [
        column
        for column in [*(name for name in NAMED_FIRST if name in drawn), *settings(drawn)]
        if column not in OF_A_CURVE and column.split(".")[-1] != "seed"
    ]
    chosen: list[str] = []
    for column in dict.fromkeys(candidates):
        before = ["loss.name", "beta", "objective", *chosen]
        if drawn.groupby(before, dropna=False)[column].nunique(dropna=False).max() > 1:
            chosen.append(column)
    return chosen


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)
