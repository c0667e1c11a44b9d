"""Seeds -> means and intervals. Pure: frames in, frames out."""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.load import PREFERENCE, RECORD

# These columns cannot tell two settings apart: who a run is, and where and how it ran.
NOT_A_SETTING = {*RECORD, "sweep", "output", "save", "seed", "beta", "loss.name", "loss.beta", "objective"}
NOT_A_SETTING_GROUP = ("tracking.", "compute.")
# When several columns move together the first of these names the setting.
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
    drawn = drawn.assign(objective=drawn["objective"].fillna(PREFERENCE) if "objective" in drawn else PREFERENCE)
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


def over_seeds(history: pd.DataFrame, curve: Curve, column: str) -> pd.DataFrame:
    """Columns step, mean, low, high, n: the mean over a curve's runs and its 95 % t interval (NaN where n < 2).

    A step's mean is over the runs that have a finite value there; `n` says how many.
    """
    rows = history.loc[history["run"].isin(curve.ids), ["step", column]].replace([np.inf, -np.inf], np.nan)
    by_step = rows.groupby("step")[column].agg(["mean", "std", "count"]).reset_index()
    n = by_step["count"].to_numpy(dtype=float)
    several = n > 1
    half = np.full(len(n), np.nan)
    half[several] = stdtrit(n[several] - 1, 0.975) * by_step["std"].to_numpy()[several] / np.sqrt(n[several])
    mean = by_step["mean"].to_numpy()
    return pd.DataFrame(
        {"step": by_step["step"], "mean": mean, "low": mean - half, "high": mean + half, "n": by_step["count"]}
    )


def _other_axes(drawn: pd.DataFrame) -> list[str]:
    """The configuration columns, beside loss, beta, objective and seed, needed to tell the sweep's settings apart.

    A column counts if it takes several values among runs of the same loss, beta and objective. Columns that only follow
    one already chosen (`optimizer.lr` follows `lr`), or that follow the loss or the beta, are not needed.
    """
    candidates = [
        column
        for column in [*NAMED_FIRST, *drawn.columns]
        if column in drawn.columns
        and column not in NOT_A_SETTING
        and not column.startswith(NOT_A_SETTING_GROUP)
        and column.split(".")[-1] != "seed"
    ]
    chosen: list[str] = []
    for column in dict.fromkeys(candidates):
        before = ["loss.name", "beta", "objective", *chosen]
        if drawn.groupby(before, dropna=False)[column].nunique(dropna=False).max() > 1:
            chosen.append(column)
    return chosen


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)
