"""Means over passes over the data, so that a batch's luck is not taken for the state of a run. Pure.

Arrays are [R, T]: runs, and steps from 0, NaN after a run's end.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

LARGEST_PASS = 100  # batches; a mean over more is no steadier than needed and only sets in later


def rows_of_a_pass(runs: pd.DataFrame) -> npt.NDArray[np.int64]:
    """[R] how many batches a pass over the data has; 1 where that is not known."""
    if "pairs" not in runs or "batch_size" not in runs:
        return np.ones(len(runs), np.int64)
    pairs = pd.to_numeric(runs["pairs"]).fillna(1).to_numpy(dtype=float)
    size = pd.to_numeric(runs["batch_size"], errors="coerce").to_numpy(dtype=float)  # "full": NaN
    return np.ceil(np.where(np.isnan(size), 1.0, pairs / size)).clip(1, LARGEST_PASS).astype(np.int64)


def smoothed(values: Array, runs: pd.DataFrame, rows: npt.NDArray[np.int64]) -> Array:
    """Means over a pass: each pass by itself where the data are shuffled and a pass is a whole number of batches, else
    the last so many rows. `rows` [R]: how many each run has.
    """
    window, aligned = rows_of_a_pass(runs), _end_with_batches(runs)
    sliding = _trailing_mean(values, np.where(aligned, 1, window))
    return _over_passes(sliding, np.where(aligned, window, 1), rows)


def _end_with_batches(runs: pd.DataFrame) -> Flags:
    """[R] Is each pass over the data a whole number of batches, and each in an order of its own?"""
    if not {"pairs", "batch_size", "sampling"} <= {*runs.columns}:
        return np.zeros(len(runs), bool)
    pairs = pd.to_numeric(runs["pairs"]).to_numpy(dtype=float)
    size = pd.to_numeric(runs["batch_size"], errors="coerce").to_numpy(dtype=float)
    with np.errstate(invalid="ignore"):
        whole = (pairs % size == 0) & (pairs / size <= LARGEST_PASS)
    return np.asarray(whole & runs["sampling"].eq("shuffle").to_numpy(), bool)


def _over_passes(values: Array, window: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Array:
    """The mean over each pass, at its last row, straight lines between; NaN before the first.

    A mean over the last `window` rows would have some pairs twice and others not at all, wherever it straddles two
    passes of a shuffled order, and would wander with the draw.
    """
    smooth = values.copy()
    for w in np.unique(window[window > 1]):
        those = np.flatnonzero(window == w)
        passes = values.shape[1] // w
        ends = np.arange(1, passes + 1) * w - 1
        with np.errstate(invalid="ignore"):
            means = values[those][:, : passes * w].reshape(len(those), passes, w).mean(2)
        for r, mean in zip(those, means, strict=True):
            n = rows[r] // w  # whole passes of this run
            smooth[r] = np.nan
            if n:
                smooth[r, : rows[r]] = np.interp(np.arange(rows[r]), ends[:n], mean[:n], left=np.nan)
    return smooth


def at_end(runs: pd.DataFrame, history: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """By run: the means of columns over the last pass over the data, or over all rows if they are fewer."""
    passes = dict(zip(runs.index, rows_of_a_pass(runs), strict=True))
    code, ids = pd.factorize(history["run"])
    ends = np.cumsum(np.bincount(code, minlength=len(ids)))
    starts = np.concatenate([[0], ends[:-1]])
    found = [r for r, run in enumerate(ids) if run in passes]
    parts = [np.arange(max(starts[r], ends[r] - passes[ids[r]]), ends[r]) for r in found]
    rows = history[list(columns)].take(np.concatenate(parts) if parts else np.empty(0, np.int64))
    return rows.groupby(np.repeat(ids[found], [len(part) for part in parts]), sort=False).mean()


def _trailing_mean(values: Array, window: npt.NDArray[np.int64]) -> Array:
    """The mean over a run's last `window` rows; NaN before there are so many."""
    smooth = values.copy()
    for w in np.unique(window[window > 1]):
        those = window == w
        with np.errstate(invalid="ignore"):
            total = np.cumsum(values[those], axis=1)
        mean = np.full_like(total, np.nan)
        mean[:, w - 1 :] = total[:, w - 1 :]
        mean[:, w:] -= total[:, :-w]
        smooth[those] = mean / w
    return smooth
