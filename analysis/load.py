"""Run directories -> tidy frames. `docs/run-directory.md`, format 1, is the whole of what this module knows."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

FORMAT = 1
ENDED = ("finished", "diverged", "failed")
UNFINISHED = ("planned", "running", "interrupted")
UNREAD = ("missing", "unreadable")
CONTINUATION = b"\xff\xff\xff\xff"  # opens every message of an Arrow stream
# config.json's `objective`, what is trained: a policy, whose rewards are implicit, or a model with a scalar output.
PREFERENCE, REWARD_MODEL = "preference", "reward_model"
NEEDED = ("step", "loss")  # the columns that have a meaning for every run

# What `runs` says about a run beside its flattened config.json.
RECORD = ("id", "label", "dir", "state", "steps_done", "stopped_at", "reason", "rows", "columns", "pairs", "problem")


class SweepError(Exception):
    """The folder cannot be read as a sweep at all: one line saying what, where, and what is allowed."""


class RunError(Exception):
    """One run directory does not hold what the contract promises. The run is named and left out."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as it lies on disk.

    runs: one row for every run sweep.json expects, indexed by id. `RECORD` first, then the configuration flattened to
        dotted columns (`loss.name`, `optimizer.lr`; `beta`, `lr`, `seed` at the top). `state` is the run's own word,
        or "missing" (no directory) or "unreadable" (a directory that breaks the contract); `problem` says why.
        `rows` and `columns` (a frozenset of names) are those of its history.
    history: one row per run and step: `run` (the id), `step`, and the contract's columns, NaN where the run lacks one
        (`with_columns` tells that from a value that is not finite). Runs in `UNREAD` have no rows.
    strays: run directories in the folder which sweep.json does not know.
    """

    path: Path
    name: str
    runs: pd.DataFrame
    history: pd.DataFrame
    strays: tuple[str, ...]

    def notices(self) -> list[str]:
        """One line for each run that is not simply finished, by name, and for each stray directory."""
        odd = self.runs[self.runs["state"] != "finished"]
        lines = [f"{run['label']} ({run['dir']}): {_state_in_words(run)}" for _, run in odd.iterrows()]
        return lines + [f"{stray}: not in sweep.json, left out" for stray in self.strays]

    def defects(self) -> list[str]:
        """What `--strict` refuses: runs missing, unreadable or not ended, and strays. A divergence is a result."""
        odd = self.runs[~self.runs["state"].isin(ENDED)]
        return [f"{run['label']}: {_state_in_words(run)}" for _, run in odd.iterrows()] + [
            f"{stray}: not in sweep.json" for stray in self.strays
        ]


def load(path: str | Path) -> Sweep:
    """Read every run that `path`/sweep.json expects. Only an unreadable sweep raises; a bad run is named instead."""
    folder = Path(path)
    name, expected = _read_sweep_file(folder)
    records: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    for entry in expected:
        record: dict[str, Any] = {key: entry[key] for key in ("id", "label", "dir")}
        record |= {"rows": 0, "columns": frozenset(), "problem": ""}
        records.append(record)
        run = folder / entry["dir"]
        if not run.is_dir():
            record |= {"state": "missing", "problem": "no such directory"}
            continue
        try:
            read, history = _read_run(run, entry["id"])
        except RunError as error:
            record |= {"state": "unreadable", "problem": str(error)}
            continue
        record |= read
        if history is not None and history.num_rows:
            tables.append(history.add_column(0, "run", pa.array([entry["id"]] * history.num_rows, pa.string())))
    runs = pd.DataFrame.from_records(records)
    runs = runs.reindex(columns=[*RECORD, *(column for column in runs.columns if column not in RECORD)])
    runs = runs.set_index("id", drop=False).rename_axis(None)
    listed = {entry["dir"] for entry in expected}
    strays = sorted(f.parent.name for f in folder.glob("*/config.json") if f.parent.name not in listed)
    if tables:
        history_frame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    else:
        history_frame = pd.DataFrame({"run": pd.Series(dtype=str), **{c: pd.Series(dtype=float) for c in NEEDED}})
    return Sweep(folder, name, runs, history_frame, tuple(strays))


def read_stream(path: Path) -> pa.Table:
    """The rows of an Arrow IPC stream up to its last whole batch; a stream cut off anywhere is no error.

    Raises RunError if the file does not begin as an Arrow stream does.
    """
    content = path.read_bytes()
    nothing = pa.table({"step": pa.array([], pa.int64())})
    if _cut_before_first_batch(content):
        return nothing
    try:
        stream = pa.ipc.open_stream(pa.BufferReader(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path.name} is not an Arrow IPC stream") from error
    batches = []
    while True:
        try:
            batch = stream.read_next_batch()
            batch.validate(full=True)
        except (StopIteration, pa.ArrowInvalid, OSError):
            break
        batches.append(batch)
    return pa.Table.from_batches(batches, schema=stream.schema)


def as_dicts(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain mappings from column to value."""
    return [{str(column): value for column, value in run.items()} for _, run in runs.iterrows()]


def with_columns(runs: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Those runs whose history has a row and all of these columns. A run has only the columns that mean something for
    it: a reward model has no `margin`, nor has a run that was trained without a reference.
    """
    return runs[[rows > 0 and {*columns} <= names for rows, names in zip(runs["rows"], runs["columns"], strict=True)]]


def census(runs: pd.DataFrame) -> str:
    """How many of the expected runs are there, and what became of the others; short enough for a figure."""
    states = runs["state"]
    read = ~states.isin(UNREAD)
    parts = [f"{int(read.sum())} of {len(runs)} runs"]
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


def _read_sweep_file(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    if not folder.is_dir():
        raise SweepError(f"{folder}: no such directory; give a sweep's directory, the one that holds sweep.json")
    file = folder / "sweep.json"
    if not file.is_file():
        if (folder / "config.json").is_file():
            raise SweepError(f"{folder}: a run directory; give its sweep's directory, {folder.resolve().parent}")
        raise SweepError(f"{folder}: no sweep.json in it; give a sweep's directory, as `python -m src.run` writes it")
    try:
        sweep = _read_json(file)
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


def _read_run(folder: Path, expected_id: str) -> tuple[dict[str, Any], pa.Table | None]:
    config = _read_json(folder / "config.json")
    status = _read_json(folder / "status.json")
    for name, content in (("config.json", config), ("status.json", status)):
        if content.get("format") != FORMAT:
            raise RunError(f"{name} has format {content.get('format')!r}; this analysis reads format {FORMAT} only")
    if config.get("id") != expected_id:
        raise RunError(f"foreign: config.json says id {config.get('id')!r}, sweep.json expects {expected_id!r}")
    state = status.get("state")
    if state not in (*ENDED, *UNFINISHED):
        raise RunError(f"status.json has state {state!r}; allowed: {', '.join((*UNFINISHED, *ENDED))}")
    data = _read_json(folder / "data.json") if (folder / "data.json").is_file() else {}
    history = _read_history(folder / "history.arrow", state, status.get("steps_done"))
    record = _flatten(config) | {
        "state": state,
        "steps_done": status.get("steps_done"),
        "stopped_at": status.get("step"),
        "reason": status.get("reason") or "",
        "rows": 0 if history is None else history.num_rows,
        "columns": frozenset(() if history is None else history.column_names),
        "pairs": data.get("pairs"),
    }
    return record, history


def _read_history(file: Path, state: str, steps_done: object) -> pa.Table | None:
    if not file.is_file():
        if state == "finished" or (state == "diverged" and steps_done):
            raise RunError(f"half-written: {state}, but there is no {file.name}")
        return None
    table = read_stream(file)
    if state in ("finished", "diverged") and table.num_rows != steps_done:
        raise RunError(f"half-written: {file.name} has {table.num_rows} of the {steps_done} rows status.json promises")
    if table.num_rows:
        lacking = [column for column in NEEDED if column not in table.column_names]
        if lacking:
            raise RunError(f"{file.name} lacks the column {', '.join(lacking)}")
        if table["step"].to_pylist() != list(range(table.num_rows)):
            raise RunError(f"{file.name}: steps do not count 0, 1, 2, …; one row per optimiser update is expected")
    return table


def _cut_before_first_batch(content: bytes) -> bool:
    """Is this the beginning of a stream whose schema message (marker, length, that many bytes) is not all there?"""
    if len(content) < 8:
        return CONTINUATION.startswith(content[:4])
    length = int.from_bytes(content[4:8], "little", signed=True)
    return content[:4] == CONTINUATION and length > len(content) - 8


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{file.name} is missing") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file.name} is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise RunError(f"{file.name} holds a {type(content).__name__}, not an object")
    return content


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"loss": {"name": "dpo"}} -> {"loss.name": "dpo"}; a list becomes its JSON text, so that it can be compared."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif prefix or key not in ("format", "id", "label"):
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _state_in_words(run: "pd.Series[Any]") -> str:
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
