"""What the page's script is given: runs, filters, columns of the table, metrics, as plain JSON. Pure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import theory
from analysis.collapse import LABELS
from analysis.figures import looks
from analysis.figures.collapse_map import SHADES
from analysis.figures.margin import first_rows
from analysis.report import curves
from analysis.report.settings import shown, text
from analysis.report.words import NOT_JUDGED
from analysis.statistics import curves as curves_of_seeds
from analysis.sweep import EVALUATED, Sweep, as_dicts

# Meaning and unit of what a history may hold, as docs/run-directory.md has them; a test compares the names.
METRICS = {
    "margin": ("margin h = a − b", "nats"),
    "log_pi/rejected": ("log π(rejected), batch mean of π", "nats"),
    "log_pi/chosen": ("log π(chosen), batch mean of π", "nats"),
    "log_ratios/chosen": ("log-ratio a of the chosen response", "nats"),
    "log_ratios/rejected": ("log-ratio b of the rejected response", "nats"),
    "rewards/margins": ("reward margin u = βh", ""),
    "rewards/chosen": ("reward of the chosen response, βa", ""),
    "rewards/rejected": ("reward of the rejected response, βb", ""),
    "rewards/accuracies": ("share of pairs with h > 0", ""),
    "implied_preference": ("implied preference σ(βh)", ""),
    "loss": ("loss", ""),
    "grad_norm": ("gradient norm before clipping", ""),
    "logps/chosen": ("log-probability of the chosen response", "nats"),
    "logps/rejected": ("log-probability of the rejected response", "nats"),
    "log_pi/chosen_last_token": ("log π of the chosen response's last token", "nats"),
    "log_pi/rejected_last_token": ("log π of the rejected response's last token", "nats"),
    "log_pi/chosen_per_token": ("log π(chosen) per token, geometric mean", "nats"),
    "log_pi/rejected_per_token": ("log π(rejected) per token, geometric mean", "nats"),
    "k1_on_data": ("k1 of policy against reference, on the data", "nats a token"),
    "k2_on_data": ("k2 of policy against reference, on the data", "nats a token"),
    "k3_on_data": ("k3 of policy against reference, on the data", "nats a token"),
    "kl_penalty": ("explicit KL penalty", ""),
    "exact/kl": ("exact KL(policy, reference)", "nats"),
    "exact/entropy": ("exact entropy", "nats"),
    "gold_reward": ("mean true reward", ""),
    "perplexity": ("perplexity per token of the chosen responses", ""),
    "lr": ("learning rate", ""),
}
ANSWERS = {
    "eval/kl_k1": ("KL(policy, reference) of the policy's own answers, k1", "nats"),
    "eval/kl_k3": ("KL(policy, reference) of the policy's own answers, k3", "nats"),
}
MOST_ACTIONS = 32  # more columns of exact action probabilities than this are left out of the menu
THEORY_POINTS = 120  # of a line of theory

# Columns of the table beside settings: key in `tables.final` or in the verdicts, title, unit, explanation.
FINALS = (
    ("margin", "margin h", "nats", "a − b at the last step"),
    ("log_ratios/chosen", "log-ratio a", "nats", "chosen response, at the last step"),
    ("log_ratios/rejected", "log-ratio b", "nats", "rejected response, at the last step"),
    ("rewards/margins", "reward margin", "", "βh at the last step"),
    ("rewards/accuracies", "accuracy", "", "share of pairs with h > 0, at the last step"),
    ("final loss", "loss", "", "at the last step"),
    ("grad_norm", "grad norm", "", "before clipping, at the last step"),
    ("max k3_on_data", "max k3", "nats a token", "largest k3 on the data, over the run"),
)
PROBABILITIES = (
    ("log_pi/rejected", "π(rejected)", "", "at the last step; sorted by its logarithm"),
    ("log_pi/chosen", "π(chosen)", "", "at the last step; sorted by its logarithm"),
)


def metrics(sweep: Sweep) -> dict[str, tuple[str, str]]:
    """The columns the page can draw, those it knows first -> meaning, unit."""
    held = frozenset[str]().union(*sweep.runs["columns"])
    known = {name: about for name, about in METRICS.items() if name in held and name in sweep.history}
    columns = map(str, sweep.history.columns)
    actions = sorted(name for name in columns if name.startswith("log_pi/") and name.count("/") == 2)
    if len(actions) <= MOST_ACTIONS:
        known |= {
            name: (f"log π of action {name.rpartition('/')[2]}, prompt {name.split('/')[1]}", "nats")
            for name in actions
        }
    return known


def evaluated(evaluations: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The columns of `beside_history.evaluations` that the page can draw -> meaning, unit."""
    on_pairs = {f"{EVALUATED}{name}": (f"held out: {about}", unit) for name, (about, unit) in METRICS.items()}
    return {name: about for name, about in (on_pairs | ANSWERS).items() if name in evaluations}


def of(sweep: Sweep, table: pd.DataFrame, verdicts: pd.DataFrame, varied: Sequence[str]) -> dict[str, Any]:
    """table: `tables.final`. All lists are as long as there are runs, and in their order."""
    runs = sweep.runs
    label = verdicts["label"].astype(object).reindex(runs.index)
    verdict = label.where(label.notna(), NOT_JUDGED)
    found = curves_of_seeds(runs)
    look_of = looks.of_curves(found)
    look = {run: look_of[curve.loss, curve.beta] for curve in found for run in curve.ids}
    colour, marker = (
        {run: _hex(its.colour) for run, its in look.items()},
        {run: its.marker for run, its in look.items()},
    )
    base = looks.of_losses(dict.fromkeys(curve.loss for curve in found))
    dimensions = [_dimension(shown(column), column, runs[column]) for column in varied]
    for dimension in dimensions:
        if dimension["column"] == "loss.name":
            dimension["looks"] = [
                [_hex(base[name].colour), base[name].marker] if name in base else ["#888888", "o"]
                for name in dimension["names"]
            ]
            dimension["names"] = [looks.loss_name(name) for name in dimension["names"]]
    dimensions.append(_ordered("verdict", verdict, (*LABELS, NOT_JUDGED)))
    dimensions.append(_dimension("state", "state", runs["state"]))
    copies = runs["copy_of"].notna()
    return {
        "labels": [name + " (again)" * copy for name, copy in zip(runs["label"], copies, strict=True)],
        "dirs": runs["dir"].to_list(),
        "colours": [colour.get(run, "#888888") for run in runs.index],
        "markers": [marker.get(run, "o") for run in runs.index],
        "diverged": [state == "diverged" for state in runs["state"]],
        "dimensions": dimensions,
        "verdicts": {name: SHADES.get(name, "#888888") for name in (*LABELS, NOT_JUDGED)},
        "columns": _columns(table, verdicts, runs),
        "problems": (runs["problem"].where(runs["problem"] != "", runs["reason"])).fillna("").to_list(),
        "targets": [_number(theory.target_line(run)) if run["rows"] else None for run in as_dicts(runs)],
        "betas": [_number(beta) for beta in runs["beta"]] if "beta" in runs else [None] * len(runs),
    }  # fmt: skip


def theory_lines(sweep: Sweep) -> curves.Lines:
    """The closed-form margin [nats] of every run that has one, on steps even in steps and in log steps."""
    starts = first_rows(sweep.history)
    if "margin" not in starts or "grad_norm" not in starts:
        return curves.joined({}, sweep.runs)
    start_of = dict(zip(starts.index, as_dicts(starts[["margin", "grad_norm"]]), strict=True))
    lines = {}
    for run in as_dicts(sweep.runs):
        start = start_of.get(run["id"])
        if start is None or theory.why_no_line(run):
            continue
        steps = np.unique(np.append(curves.bucket_edges(int(run["rows"]), THEORY_POINTS)[:-1], int(run["rows"]) - 1))
        line = theory.margin_line(run, start, steps)
        if line.margin is not None:
            lines[run["id"]] = (steps, line.margin)
    return curves.joined(lines, sweep.runs)


def _columns(table: pd.DataFrame, verdicts: pd.DataFrame, runs: pd.DataFrame) -> list[dict[str, Any]]:
    onset = verdicts["onset"].reindex(runs.index)
    columns = [_column("onset", "onset", "step", "when the verdict's conditions first held together", onset)]
    for key, title, unit, about in (*FINALS[:3], *PROBABILITIES, *FINALS[3:]):
        if key in table and table[key].notna().any():
            columns.append(_column(key, title, unit, about, table[key]))
    columns.append(_column("steps", "rows", "", "steps in the history", table["steps"]))
    return columns


def _column(key: str, title: str, unit: str, about: str, values: "pd.Series[Any]") -> dict[str, Any]:
    kind = "probability" if key.startswith("log_pi/") else "number"
    numbers = [_number(value) for value in values]
    return {"key": key, "title": title, "unit": unit, "about": about, "kind": kind, "values": numbers}


def _dimension(title: str, column: str, values: "pd.Series[Any]") -> dict[str, Any]:
    """A setting to filter by: the values it takes, numbers in their order, and which of them each run has."""
    texts = values.astype(object).map(text)
    distinct = dict(zip(texts, values, strict=True))

    def place(name: str) -> tuple[int, float]:
        if name == text(None):
            return 2, 0.0
        value = distinct[name]
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and value == value
        return (0, float(value)) if is_number else (1, 0.0)  # texts stay in the sweep's order

    names = sorted(distinct, key=place)
    position = {name: i for i, name in enumerate(names)}
    return {"title": title, "column": column, "names": names, "of": [position[name] for name in texts]}


def _ordered(title: str, values: "pd.Series[Any]", order: Sequence[str]) -> dict[str, Any]:
    names = [name for name in order if (values == name).any()]
    return {"title": title, "column": title, "names": names, "of": [names.index(value) for value in values]}


def _hex(colour: looks.RGB) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _number(value: Any) -> float | int | str | None:
    """As JSON has it: no NaN; infinities as texts, which the script turns back."""
    if value is None or pd.isna(value):
        return None
    number = float(value)
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return int(number) if number.is_integer() and abs(number) < 1e15 else number
