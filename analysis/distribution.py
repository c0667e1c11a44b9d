"""What can be said where the whole distribution over responses is recorded, as `log_pi/<prompt>/<action>`. Pure."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.sweep import settings

Array = npt.NDArray[np.float64]


def columns(history: pd.DataFrame) -> list[str]:
    """Those of the distribution: two slashes tell them from `log_pi/chosen`."""
    return [column for column in map(str, history.columns) if column.startswith("log_pi/") and column.count("/") == 2]


def largest(history: pd.DataFrame, grid: Callable[[str], Array], shape: tuple[int, int]) -> Array:
    """[R, T] the probability of the most likely response, mean over prompts; NaN where it is not recorded."""
    by_prompt: dict[str, list[str]] = {}
    for column in columns(history):
        by_prompt.setdefault(column.split("/")[1], []).append(column)
    total, prompts = np.zeros(shape), np.zeros(shape)
    for actions in by_prompt.values():
        top = np.full(shape, -np.inf)
        for action in actions:
            top = np.fmax(top, grid(action))
        there = top > -np.inf
        total += np.where(there, np.exp(top), 0.0)
        prompts += there
    with np.errstate(invalid="ignore"):
        return total / prompts


def reference_ratio(runs: pd.DataFrame, first: pd.DataFrame, last: pd.DataFrame) -> Array:
    """[R] C9: among runs that differ in nothing but their reference, the largest total variation between two policies
    at the end over the largest between two at the start. NaN for a run without such a companion.

    first, last: [R, prompts x actions] log-probabilities at the run's first and last row. The start is the reference
    (`model.init=copy`; others are left out).
    """
    if "model.ref_probs" not in runs:
        return np.full(len(runs), np.nan)
    copies = runs["model.init"].eq("copy").to_numpy() if "model.init" in runs else np.ones(len(runs), bool)
    ratio = np.full(len(runs), np.nan)
    for group in _companions(runs, {"model.ref_probs"}, copies):
        start, end = _spread(first.iloc[group]), _spread(last.iloc[group])
        ratio[group] = end / start if start > 0 else np.nan
    return ratio


def beta_spread(runs: pd.DataFrame, last: pd.DataFrame) -> Array:
    """[R] C10: among runs that differ in nothing but beta, the largest total variation between two policies at the end.
    NaN for a run without such a companion.
    """
    spread = np.full(len(runs), np.nan)
    for group in _companions(runs, {"beta", "loss.beta"}, runs["beta"].notna().to_numpy()):
        spread[group] = _spread(last.iloc[group])
    return spread


def _companions(runs: pd.DataFrame, free: set[str], admitted: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Positions of runs that are equal in every setting but the free ones, where these take several values."""
    fixed = [column for column in settings(runs) if column not in free]
    keys = runs[fixed].astype(str).agg("\n".join, axis=1)
    values = runs[[column for column in free if column in runs]].astype(str).agg("\n".join, axis=1)
    groups = []
    for _, positions in pd.Series(np.arange(len(runs))).groupby(keys.to_numpy()):
        group = [int(i) for i in positions if admitted[i]]
        if values.iloc[group].nunique() > 1:
            groups.append(group)
    return groups


def _spread(log_pi: pd.DataFrame) -> float:
    """The largest total variation between two of the rows, mean over prompts; NaN where one is not all there."""
    there = log_pi.dropna(axis=1, how="all")
    prompts = len({str(column).split("/")[1] for column in there})
    pi = np.exp(there.to_numpy(dtype=float))
    if not prompts:
        return np.nan
    return max(float(np.abs(p - q).sum()) / 2 / prompts for p, q in combinations(pi, 2))
