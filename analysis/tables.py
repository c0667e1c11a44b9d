"""The table of final values. Pure: frames in, a frame or text out."""

import math
from typing import Any

import pandas as pd

from analysis import theory
from analysis.sweep import as_dicts, with_columns

SETTINGS = {
    "label": "label",
    "loss": "loss.name",
    "beta": "beta",
    "optimizer": "optimizer.name",
    "lr": "lr",
    "objective": "objective",
    "seed": "seed",
    "state": "state",
    "steps": "rows",
}
LAST = (
    "loss",
    "margin",
    "rewards/margins",
    "rewards/accuracies",
    "log_pi/rejected",
    "log_pi/chosen",
    "log_ratios/chosen",
    "log_ratios/rejected",
    "grad_norm",
)
LARGEST = ("k1_on_data", "k2_on_data", "k3_on_data")

# The Markdown table is for reading: fewer columns, four figures, probabilities as powers of ten.
MARKDOWN = {
    "label": "label",
    "loss": "loss",
    "beta": "beta",
    "optimizer": "optimizer",
    "lr": "lr",
    "seed": "seed",
    "state": "state",
    "steps": "steps",
    "final loss": "loss",
    "margin": "margin h [nats]",
    "target margin": "target 1/(2 beta)",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "accuracy",
    "log_pi/rejected": "pi(rejected)",
    "min log_pi/rejected": "min pi(rejected)",
    "log_pi/chosen": "pi(chosen)",
    "log_ratios/chosen": "log-ratio chosen",
    "log_ratios/rejected": "log-ratio rejected",
    "grad_norm": "grad norm",
    "max k3_on_data": "max k3 on data",
}


def final(runs: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """One row per expected run: its settings and state, then the last row of its history; empty where there is none, or
    where a quantity has no meaning for the run.

    Log-probabilities and margins in nats. `steps` counts history rows; `stopped at` is where a run diverged or failed;
    `target margin` is the margin at which IPO's loss is least; `min` and `max` are over the whole history.
    """
    table = pd.DataFrame({name: runs.get(column) for name, column in SETTINGS.items()}, index=runs.index)
    table["stopped at"] = runs["stopped_at"]
    by_run = history.groupby("run")
    last = by_run.tail(1).set_index("run")
    for column in LAST:
        name = "final loss" if column == "loss" else column
        table[name] = last[column].reindex(runs.index) if column in last else math.nan
        if column == "margin":
            compared = {*with_columns(runs, column).index}
            targets = [theory.target_line(run) if run["id"] in compared else math.nan for run in as_dicts(runs)]
            table["target margin"] = targets
        if column == "log_pi/rejected":
            table[f"min {column}"] = by_run[column].min().reindex(runs.index) if column in last else math.nan
    for column in LARGEST:
        table[f"max {column}"] = by_run[column].max().reindex(runs.index) if column in history else math.nan
    table["id"] = runs["id"]
    table["problem"] = runs["problem"].where(runs["problem"] != "", runs["reason"])
    return table


def csv(table: pd.DataFrame) -> str:
    """Full precision: 17 figures restore every float64."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.17g")


def markdown(table: pd.DataFrame) -> str:
    """A pipe table, columns padded so that it also reads as plain text."""
    cells = [[_cell(column, value) for value in table[column]] for column in MARKDOWN]
    return _pipes([list(MARKDOWN.values()), *map(list, zip(*cells, strict=True))])


def sensitivity(table: pd.DataFrame, runs: int) -> str:
    """`collapse.sensitivity` in Markdown, under a line that says what it is."""
    rows = [[str(column) for column in table.columns]]
    rows += [[_cell(str(column), value) for column, value in row.items()] for _, row in table.iterrows()]
    head = (
        f"How the labels of {runs} runs move when one of `analysis.collapse.Thresholds` is halved or doubled.\n"
        "`changed`: runs with another label than at the thresholds as they are; the other columns: runs by label.\n"
    )
    return f"{head}\n{_pipes(rows)}"


def samples(runs: pd.DataFrame, answers: pd.DataFrame, most: int) -> str:
    """`beside_history.samples`, or some of its rows, in Markdown: a table for each prompt. At most so many rows."""
    shown = answers.head(most)
    parts = [f"{len(shown)} of {len(answers)} answers.\n"] if len(shown) < len(answers) else []
    for (pair, prompt), own in shown.groupby(["pair", "prompt"], sort=True):
        rows = [["run", "step", "k1 [nats]", "k3 [nats]", "answer"]]
        for run, step, k1, k3, answer in zip(own["run"], own["step"], own["k1"], own["k3"], own["answer"], strict=True):
            numbers = [_cell(name, value) for name, value in (("k1", k1), ("k3", k3))]
            rows.append([str(runs.loc[run, "label"]), str(step), *numbers, _plain(str(answer))])
        quoted = "\n".join(f"> {_plain(line)}" for line in str(prompt).split("\n"))
        parts.append(f"### Pair {pair}\n\n{quoted}\n\n{_pipes(rows)}")
    return "\n".join(parts)


def _plain(text: str) -> str:
    """In a cell of a pipe table: one line, nothing of it read as Markdown or HTML that could break the table."""
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\n", "<br>")):
        text = text.replace(character, instead)
    return text.replace("\r", "")


def _pipes(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines) + "\n"


def power_of_ten(log_p: float) -> str:
    """A probability given as its natural logarithm, three figures, whatever its size: -2000 nats is 2.58e-869."""
    if math.isnan(log_p):
        return ""
    if math.isinf(log_p):
        return "0" if log_p < 0 else "inf"
    exponent = math.floor(log_p / math.log(10))
    leading = f"{10 ** (log_p / math.log(10) - exponent):.2f}"
    if leading == "10.00":
        leading, exponent = "1.00", exponent + 1
    return f"{float(leading) * 10.0**exponent:.3g}" if -3 <= exponent <= 3 else f"{leading}e{exponent}"


def _cell(column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if "log_pi/" in column:
        return power_of_ten(float(value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")
