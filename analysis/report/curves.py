"""Histories, thinned for the screen and packed for the page.

The rule, which the page states: a line of at most `points` rows is kept whole. A longer one is cut into buckets, half
of the cuts equally far apart in steps and half in log steps, and of each bucket are kept the rows with the smallest and
the largest finite value and the first row that is not finite; beside them the first and the last row of all. So no
extreme and no gap is lost on either axis, and whatever is drawn is a row of the history.
"""

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.sweep import with_columns

POINTS = 3_000_000  # in the whole page; some 12 MB of it
FEWEST, MOST = 48, 800  # points of a line: what still shows its shape, and what a screen can show


@dataclass(frozen=True)
class Lines:
    """Lines of some runs in one quantity. `counts` [R] has a 0 for a run without one; the rest is joined in order."""

    counts: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def packed(self) -> str:
        """counts and steps as uint32, values as float32, all little-endian, one after the other: gzip, base64."""
        with np.errstate(over="ignore"):  # beyond 3e38 is infinite on a screen
            values = self.values.astype("<f4")
        content = self.counts.astype("<u4").tobytes() + self.steps.astype("<u4").tobytes() + values.tobytes()
        return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


def points_a_line(runs: pd.DataFrame, metrics: Sequence[str]) -> int:
    """So many that the page keeps to `POINTS`, where `FEWEST` lets it."""
    lines = sum(len(with_columns(runs, metric)) for metric in metrics)
    return int(np.clip(POINTS // max(lines, 1), FEWEST, MOST))


def thinned(runs: pd.DataFrame, history: pd.DataFrame, metric: str, points: int) -> Lines:
    """`Sweep.runs`, `Sweep.history` -> the lines of all runs in one column, each of about `points` rows at most."""
    length_R, start_R = _extents(runs)
    has_R = runs.index.isin(with_columns(runs, metric).index)
    values, steps = history[metric].to_numpy(dtype=float), history["step"].to_numpy()
    kept = np.zeros(len(values), bool)
    for length in np.unique(length_R[has_R]):
        rows = start_R[has_R & (length_R == length)][:, None] + np.arange(length)
        kept[rows] = worth_keeping(values[rows], points)
    counts = np.where(has_R, _sums(kept, start_R, length_R), 0)
    return Lines(counts, steps[kept], values[kept])


def means_over_a_pass(
    runs: pd.DataFrame, history: pd.DataFrame, metrics: Sequence[str], passes: npt.NDArray[np.int64]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same frames with a row for the start and one for each whole pass, of `passes` [R] rows: its last step, and
    the means of its finite values (NaN where there are none). A run that is shorter than a pass, or whose pass is one
    row, stays as it is.
    """
    length_R, start_R = _extents(runs)
    blocks_R = np.where((passes > 1) & (length_R >= passes), 1 + length_R // passes, length_R)
    to_R = np.cumsum(blocks_R) - blocks_R
    means = {"step": np.zeros(blocks_R.sum(), np.int64)} | {name: np.zeros(blocks_R.sum()) for name in metrics}
    for length, rows_of_pass in {*zip(length_R.tolist(), passes.tolist(), strict=True)}:
        those = (length_R == length) & (passes == rows_of_pass)
        whole = blocks_R[those][0]
        rows, into = start_R[those][:, None] + np.arange(length), to_R[those][:, None] + np.arange(whole)
        for name, result in means.items():
            values = history[name].to_numpy()[rows]
            if whole == length:
                result[into] = values
                continue
            passed = values[:, : (whole - 1) * rows_of_pass].reshape(len(values), whole - 1, rows_of_pass)
            result[into[:, 0]] = values[:, 0]
            result[into[:, 1:]] = passed[:, :, -1] if name == "step" else _means(passed)
    return runs.assign(rows=blocks_R), pd.DataFrame(means, copy=False)


def _means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over the last axis, of what is finite."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(finite, values, 0.0).sum(-1) / finite.sum(-1), float)


def worth_keeping(values: npt.NDArray[np.float64], points: int) -> npt.NDArray[np.bool_]:
    """[R, T] -> [R, T] which rows the rule above keeps."""
    length = values.shape[1]
    if length <= points:
        return np.ones(values.shape, bool)
    keep = np.zeros(values.shape, bool)
    keep[:, [0, -1]] = True
    finite = np.isfinite(values)
    low, high = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
    each = np.arange(len(values))
    edges = bucket_edges(length, points // 2)
    for start, end in pairwise(edges):
        inside = finite[:, start:end]
        some, gap = inside.any(1), ~inside.all(1)
        keep[each[some], start + low[some, start:end].argmin(1)] = True
        keep[each[some], start + high[some, start:end].argmax(1)] = True
        keep[each[gap], start + (~inside[gap]).argmax(1)] = True
    return keep


def bucket_edges(length: int, buckets: int) -> npt.NDArray[np.int64]:
    """0 … length in at most so many buckets, half of them even in steps and half in log steps."""
    half = max(buckets // 2, 1) + 1
    even, in_logs = np.linspace(0, length, half), np.geomspace(1, length, half)
    return np.unique(np.concatenate([even, in_logs]).round().astype(np.int64))


def joined(lines: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]], runs: pd.DataFrame) -> Lines:
    """Lines given as (steps, values) by run id."""
    present = [lines[run] for run in runs.index if run in lines]
    counts = np.array([len(lines[run][0]) if run in lines else 0 for run in runs.index], np.int64)
    steps = [np.zeros(0, np.int64), *(steps for steps, _ in present)]
    return Lines(counts, np.concatenate(steps), np.concatenate([np.zeros(0), *(values for _, values in present)]))


def _extents(runs: pd.DataFrame) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """[R] how many rows each run has in the history, and [R] where they begin."""
    length_R = np.where(runs["rows"] > 0, runs["rows"], 0).astype(np.int64)
    return length_R, np.cumsum(length_R) - length_R


def _sums(
    kept: npt.NDArray[np.bool_], start: npt.NDArray[np.int64], length: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    total = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    return np.asarray(total[start + length] - total[start], np.int64)
