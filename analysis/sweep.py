"""What every source of runs is turned into: a `Sweep`, and what can be said about it."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FORMAT = 1
ENDED = ("finished", "diverged", "failed")
UNFINISHED = ("planned", "running", "interrupted")
UNREAD = ("missing", "unreadable")
# config.json's `objective`, what is trained: a policy, whose rewards are implicit, or a model with a scalar output.
PREFERENCE, REWARD_MODEL = "preference", "reward_model"
NEEDED = ("step", "loss")  # the columns that have a meaning for every run
EVALUATED = "eval/"  # begins the columns of evaluations; they are no part of a history
INTEGERS = {"step", "tokens", "pairs", "nonfinite"}  # every other column is float64

# What `runs` says about a run beside its flattened configuration.
RECORD = (
    "id", "label", "dir", "expected", "state", "steps_done", "stopped_at", "reason", "rows", "columns", "pairs",
    "chosen_tokens", "rejected_tokens", "attempt", "problem", "copy_of",
)  # fmt: skip

History = Mapping[str, np.ndarray]  # one run's columns, one value a step


class SweepError(Exception):
    """The source cannot be read as a sweep at all: one line saying what, where, and what is allowed."""


class RunError(Exception):
    """One run does not hold what docs/run-directory.md promises. The run is named and left out."""


@dataclass(frozen=True)
class Sweep:
    """A sweep, wherever it was read from.

    source: what was given to `analysis.load`.
    runs: one row for every run there should be, indexed by id. `RECORD` first, then the configuration flattened to
        dotted columns (`loss.name`, `optimizer.lr`; `beta`, `lr`, `seed` at the top). `state` is the run's own word,
        or "missing" (expected, not found) or "unreadable" (found, and breaks the contract); `problem` says why.
        `expected` is False where no sweep.json says which runs there should be. `rows` and `columns` (a frozenset of
        names) are those of its history, read or not. `chosen_tokens`, `rejected_tokens`: mean length of a response.
        `attempt`: how often the run was begun. `copy_of`: the id of the run itself, where one that several cells of a
        sweep asked for is shown in the place of another of them.
    history: one row per run and step: `run` (the id), `step`, and the columns asked for, NaN where the run lacks one
        (`with_columns` tells that from a value that is not finite). A run's rows stand together, steps rising, runs in
        the order of `runs`. Runs in `UNREAD` have no rows.
    strays: what was found and is not in the sweep, or is a second copy of a run that is -> why.
    evaluations: of W&B, which has them among the rows of the history: run id -> `step` and `eval/…` columns. None where
        they lie in files of their own. `beside_history.evaluations` has them of either.
    """

    source: str
    name: str
    runs: pd.DataFrame
    history: pd.DataFrame
    strays: Mapping[str, str]
    evaluations: Mapping[str, History] | None = None

    def notices(self) -> list[str]:
        """One line for each run that is not simply finished, by name, and for each stray."""
        odd = self.runs[(self.runs["state"] != "finished") & self.runs["copy_of"].isna()]
        lines = [f"{run['label']} ({run['dir']}): {_state_in_words(run)}" for run in as_dicts(odd)]
        return lines + [f"{stray}: {why}, left out" for stray, why in self.strays.items()]

    def defects(self) -> list[str]:
        """What `--strict` refuses: runs missing, unreadable or not ended, and strays. A divergence is a result."""
        odd = self.runs[~self.runs["state"].isin(ENDED) & self.runs["copy_of"].isna()]
        lines = [f"{run['label']}: {_state_in_words(run)}" for run in as_dicts(odd)]
        return lines + [f"{stray}: {why}" for stray, why in self.strays.items()]


def assemble(
    source: str,
    name: str,
    records: Sequence[Mapping[str, Any]],
    histories: Mapping[str, History],
    strays: Mapping[str, str],
    evaluations: Mapping[str, History] | None = None,
) -> Sweep:
    """One frame of runs and one of steps. `histories`: run id -> columns; a run without rows has none."""
    runs = pd.DataFrame.from_records([dict(record) for record in records])
    runs = runs.reindex(columns=[*RECORD, *(column for column in runs.columns if column not in RECORD)])
    runs = runs.set_index("id", drop=False).rename_axis(None)
    for column in ("beta", "lr"):  # JSON may have lost that 1.0 is no integer
        if column in runs:
            runs[column] = runs[column].astype(float)
    parts = [(run, histories[run]) for run in runs.index if run in histories]
    lengths = [len(columns["step"]) for _, columns in parts]
    ends = np.cumsum([0, *lengths])
    names = dict.fromkeys([*NEEDED, *(name for _, columns in parts for name in columns)])
    history: dict[str, Any] = {"run": np.repeat(np.array([run for run, _ in parts], dtype=object), lengths)}
    for column in names:
        whole = column in INTEGERS and all(column in columns for _, columns in parts)
        history[column] = np.zeros(ends[-1], np.int64) if whole else np.full(ends[-1], np.nan)
        for (_, columns), start, end in zip(parts, ends[:-1], ends[1:], strict=True):
            if column in columns:
                history[column][start:end] = columns[column]
    return Sweep(source, name, runs, pd.DataFrame(history, copy=False), strays, evaluations)


def checked(history: History, where: str) -> History:
    """The same history. Raises RunError if it lacks what every run has, or its steps do not count 0, 1, 2, …"""
    lacking = [column for column in NEEDED if column not in history]
    if lacking:
        raise RunError(f"{where} lacks the column {', '.join(lacking)}")
    if not np.array_equal(history["step"], np.arange(len(history["step"]))):
        raise RunError(f"{where}: steps do not count 0, 1, 2, …; one row per optimiser update is expected")
    return history


def is_wanted(name: str, columns: Iterable[str] | None) -> bool:
    """Does one of the names or patterns (`log_pi/*/*`) ask for this column? None asks for all."""
    return columns is None or name in NEEDED or any(fnmatchcase(name, pattern) for pattern in columns)


def settings(runs: pd.DataFrame) -> list[str]:
    """The columns of the configuration: not who a run is, how it ended, or where and how it ran."""
    names = [str(column) for column in runs.columns]
    others = {*RECORD, "sweep", "output", "save"}
    beside = ("tracking.", "compute.", "evaluation.")  # these change no result
    return [name for name in names if name not in others and not name.startswith(beside)]


def as_dicts(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain mappings from column to value."""
    names = [str(column) for column in runs.columns]
    return [dict(zip(names, row, strict=True)) for row in runs.itertuples(index=False, name=None)]


def with_columns(runs: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Those runs whose history has a row and all of these columns. A run has only the columns that mean something for
    it: a reward model has no `margin`, nor has a run that was trained without a reference.
    """
    return runs[[rows > 0 and {*columns} <= names for rows, names in zip(runs["rows"], runs["columns"], strict=True)]]


def objectives(runs: pd.DataFrame) -> "pd.Series[str]":
    """What each run trains: `PREFERENCE`, where its configuration does not say, or `REWARD_MODEL`."""
    if "objective" not in runs:
        return pd.Series(PREFERENCE, index=runs.index)
    return runs["objective"].fillna(PREFERENCE)


def census(runs: pd.DataFrame) -> str:
    """How many of the expected runs are there, and what became of the others; short enough for a figure."""
    runs = runs[runs["copy_of"].isna()]
    states = runs["state"]
    read = int((~states.isin(UNREAD)).sum())
    parts = [f"{read} of {len(runs)} runs" if runs["expected"].all() else f"{read} runs found"]
    for state in (*UNREAD, *UNFINISHED, "failed", "diverged"):
        those = runs[states == state]
        if those.empty:
            continue
        text = f"{len(those)} unfinished ({state})" if state in UNFINISHED else f"{len(those)} {state}"
        if state == "diverged":
            at = sorted({int(step) for step in those["stopped_at"].dropna()})
            if at:
                text += f" at step {at[0]}" if len(at) == 1 else f" at steps {at[0]} to {at[-1]}"
        parts.append(text)
    return "; ".join(parts)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss": {"name": "dpo"}} -> {"loss.name": "dpo"}; a list becomes its JSON text, so that it can be compared."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif prefix or key not in ("format", "id", "label"):
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return flat


def read_sweep_file(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """The sweep's name and, for each run it should have, at least id, label and dir. Raises SweepError."""
    file = folder / "sweep.json"
    try:
        sweep = read_json(file)
    except RunError as error:
        raise SweepError(f"{file}: {error}") from error
    if sweep.get("format") != FORMAT:
        raise SweepError(f"{file}: format {sweep.get('format')!r}; this analysis reads format {FORMAT} only")
    runs = sweep.get("runs")
    if not isinstance(runs, list) or not runs or not all(_names_a_run(entry) for entry in runs):
        raise SweepError(f"{file}: 'runs' must be a non-empty list of objects with id, label and dir (a plain name)")
    if len({entry["id"] for entry in runs}) < len(runs):
        raise SweepError(f"{file}: 'runs' lists the same id twice; each run is listed once")
    return str(sweep.get("name", folder.name)), runs


def _names_a_run(entry: object) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("id", "label", "dir")):
        return False
    return entry["dir"] not in ("", ".", "..") and Path(entry["dir"]).name == entry["dir"]


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises RunError, in words fit for a report."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{file.name} is missing") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file.name} is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise RunError(f"{file.name} holds a {type(content).__name__}, not an object")
    return content


def _state_in_words(run: Mapping[str, Any]) -> str:
    state, problem = run["state"], run["problem"]
    if state in UNREAD:
        return f"{state}, left out: {problem}"
    if state in UNFINISHED:
        steps = run.get("steps")
        planned = "?" if steps is None or pd.isna(steps) else int(steps)
        return f"not finished: {state}, {run['rows']} of {planned} steps"
    stopped = run["stopped_at"]
    where = "" if stopped is None or math.isnan(stopped) else f" at step {int(stopped)}"
    return f"{state}{where}: {run['reason'] or 'no reason given'}"
