"""What runs may hold beside the history: evaluations, probes of every pair, answers in words. Read when asked for.

W&B has evaluations among the rows of the history. It has no probes, and of answers a table that is not read here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run_directories import REWARDS, read_stream
from analysis.sweep import EVALUATED, RunError, Sweep, as_dicts

PROBES = {
    "step": "int64",
    "set": "str",
    "pair": "int64",
    "log_ratio_chosen": "float64",
    "log_ratio_rejected": "float64",
}
SAMPLES = ("step", "pair", "prompt", "answer", "k1", "k3")


@dataclass(frozen=True)
class Found:
    """rows: those of all runs that have the file, with `run` (the id) first. problems: runs whose file is no good."""

    rows: pd.DataFrame
    problems: tuple[str, ...] = ()


def evaluations(sweep: Sweep) -> Found:
    """`evaluations.arrow`: metrics of held-out pairs and of the policy's own answers.

    Columns: run, step, and every `eval/…` that a run has, NaN where another lacks it. Runs come in the order of
    `Sweep.runs`, steps rise. As in `Sweep.history`, a run that several cells asked for has its rows for each of them.
    """
    if sweep.evaluations is None:
        found = _of_every_run(sweep, "evaluations.arrow", ["run", "step"], _read_evaluations)
        own = {str(run): rows for run, rows in found.rows.groupby("run", sort=False)}
    else:
        found = Found(pd.DataFrame(columns=["run", "step"]))
        own = {run: pd.DataFrame({"run": run, **columns}) for run, columns in sweep.evaluations.items()}
    parts = []
    for run in as_dicts(sweep.runs):
        original = run["id"] if pd.isna(run["copy_of"]) else run["copy_of"]
        if original in own:
            rows = own[original]
            parts.append(rows if original == run["id"] else _in_its_place(rows, sweep.runs.loc[original, "beta"], run))
    rows = pd.concat(parts, ignore_index=True) if parts else found.rows
    return Found(rows, found.problems)


def with_evaluated_columns(runs: pd.DataFrame, evaluations: pd.DataFrame) -> pd.DataFrame:
    """`Sweep.runs` with the columns of each run's evaluations in place of its history's, for `sweep.with_columns`."""
    held = evaluations.drop(columns=["run", "step"]).notna().groupby(evaluations["run"]).any()
    names = {run: frozenset(held.columns[has]) for run, has in zip(held.index, held.to_numpy(bool), strict=True)}
    columns = pd.Series([names.get(run, frozenset()) for run in runs.index], runs.index, dtype=object)
    return runs.assign(columns=columns)


def probes(sweep: Sweep) -> Found:
    """`probes.arrow`: the log-ratios [nats] of every probed pair at every evaluation.

    Columns: run, step, set ("train" or "held_out"), pair, log_ratio_chosen, log_ratio_rejected.
    """
    return _of_every_run(sweep, "probes.arrow", ["run", *PROBES], _read_probes)


def samples(sweep: Sweep) -> Found:
    """`samples.jsonl`: what the policy answered. Columns: run, step, pair, prompt, answer, k1, k3 (nats)."""
    return _of_every_run(sweep, "samples.jsonl", ["run", *SAMPLES], _read_samples)


def _of_every_run(sweep: Sweep, file: str, columns: list[str], read: Any) -> Found:
    parts, problems = [], []
    own = sweep.runs[sweep.runs["copy_of"].isna() & (sweep.runs["rows"] > 0)]
    for run, label, folder in zip(own["id"], own["label"], own["dir"], strict=True):
        path = Path(sweep.source) / folder / file
        if not path.is_file():
            continue
        try:
            rows = read(path)
        except RunError as error:
            problems.append(f"{label}: {error}, left out")
            continue
        if not rows.empty:
            rows.insert(0, "run", run)
            parts.append(rows)
    return Found(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns), tuple(problems))


def _in_its_place(rows: pd.DataFrame, beta: float, copy: Mapping[str, Any]) -> pd.DataFrame:
    """A run's evaluations in another place it was asked for: as `run_directories` has its history there."""
    rows = rows.assign(run=copy["id"])
    if copy["beta"] == beta or pd.isna(beta):
        return rows
    scaled = [EVALUATED + name for name in REWARDS if EVALUATED + name in rows]
    rows[scaled] *= copy["beta"] / beta
    return rows.drop(columns=f"{EVALUATED}implied_preference", errors="ignore")


def _read_evaluations(path: Path) -> pd.DataFrame:
    table, names = read_stream(path, (f"{EVALUATED}*",))
    if names and "step" not in names:
        raise RunError(f"{path.name} lacks the column step")
    rows: pd.DataFrame = table.to_pandas().astype({"step": "int64"})
    return rows[["step", *(name for name in table.column_names if name.startswith(EVALUATED))]]


def _read_probes(path: Path) -> pd.DataFrame:
    table, names = read_stream(path)
    lacking = [name for name in PROBES if names and name not in names]
    if lacking:
        raise RunError(f"{path.name} lacks the column {', '.join(lacking)}")
    rows: pd.DataFrame = table.to_pandas().reindex(columns=[*PROBES]).astype(PROBES)
    return rows


def _read_samples(path: Path) -> pd.DataFrame:
    """Lines up to the last whole one; a line cut off by a kill ends the file."""
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
            rows.append([row[name] for name in SAMPLES])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path.name}, line {number}: not an object with {', '.join(SAMPLES)}") from error
    return pd.DataFrame(rows, columns=[*SAMPLES])
