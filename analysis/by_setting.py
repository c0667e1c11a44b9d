"""Tables for a paper: a row for each setting, means over its seeds with their bootstrap intervals. Pure."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.collapse import LABELS
from analysis.passes import at_end
from analysis.statistics import Curve, curves, mean_interval, set_apart
from analysis.sweep import with_columns

# Column -> (heading, is more better?). pi(rejected) and u have no better end: that is what a sweep asks.
FINAL: dict[str, tuple[str, bool | None]] = {
    "rewards/accuracies": ("accuracy", True),
    "margin": ("margin $h$ (nats)", None),
    "rewards/margins": (r"$\beta h$", None),
    "log_ratios/chosen": ("$a$ (nats)", True),
    "log_ratios/rejected": ("$b$ (nats)", None),
    "exact/kl": ("KL (nats)", None),
}
COLLAPSED = "collapsed"


@dataclass(frozen=True)
class Cell:
    """A mean over seeds; NaN for the interval of one seed. `best`: of its column, as far as the means go."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    best: bool = False


@dataclass(frozen=True)
class Row:
    curve: Curve
    seeds: int  # runs that went into the means
    cells: dict[str, Cell | str]


def final(runs: pd.DataFrame, history: pd.DataFrame) -> tuple[dict[str, str], list[Row]]:
    """Headings and rows: the means over the last pass over the data, of runs that finished."""
    there = [column for column in FINAL if column in history and len(with_columns(runs, column))]
    done = runs[(runs["state"] == "finished") & (runs["rows"] > 0)]
    ends = at_end(done, history, there).reindex(done.index)
    rows = []
    for curve in curves(runs):
        own = ends.reindex([run for run in curve.ids if run in done.index])
        rows.append(Row(curve, len(own), {column: _cell(own[column].to_numpy()) for column in there}))
    for column in there:
        more = FINAL[column][1]
        if more is not None:
            _mark(rows, column, largest=more)
    return {column: FINAL[column][0] for column in there}, rows


def collapses(runs: pd.DataFrame, verdicts: pd.DataFrame) -> tuple[dict[str, str], list[Row]]:
    """Headings and rows: the share of seeds that collapsed, the label most of them have, and when it set in."""
    rows = []
    for curve in curves(runs):
        own = verdicts.loc[[run for run in curve.ids if run in verdicts.index]]
        judged = own[own["label"].notna()]
        if judged.empty:
            rows.append(Row(curve, 0, {}))
            continue
        label = max(LABELS, key=lambda name: (int((judged["label"] == name).sum()), LABELS.index(name)))
        cells: dict[str, Cell | str] = {
            COLLAPSED: _cell((judged["label"] != "none").to_numpy(dtype=float)),
            "label": label,
            "onset": _cell(judged.loc[judged["label"] == label, "onset"].dropna().to_numpy(dtype=float)),
            "u": _cell(judged["u"].to_numpy(dtype=float)),
            "du_dlog_s": _cell(judged["du_dlog_s"].to_numpy(dtype=float)),
        }
        rows.append(Row(curve, len(judged), cells))
    _mark(rows, COLLAPSED, largest=False)
    headings = {
        COLLAPSED: "share collapsed", "label": "label", "onset": "onset (step)", "u": r"$\beta h$ at the end",
        "du_dlog_s": r"$\mathrm{d}(\beta h)/\mathrm{d}\log s$",
    }  # fmt: skip
    return headings, rows


def diverged(runs: pd.DataFrame, curve: Curve) -> int:
    """How many of a curve's runs diverged."""
    return len(set_apart(runs, curve)[1])


def _cell(values: Any) -> Cell:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Cell(math.nan)
    low, high = mean_interval(finite)
    return Cell(float(finite.mean()), low, high)


def _mark(rows: list[Row], column: str, *, largest: bool) -> None:
    """The best mean of a column, and all that equal it; none if all are the same."""
    means = [cell.mean for row in rows if isinstance(cell := row.cells.get(column), Cell) and cell.mean == cell.mean]
    if not means or min(means) == max(means):
        return
    best = max(means) if largest else min(means)
    for row in rows:
        cell = row.cells.get(column)
        if isinstance(cell, Cell) and cell.mean == best:
            row.cells[column] = Cell(cell.mean, cell.low, cell.high, best=True)
