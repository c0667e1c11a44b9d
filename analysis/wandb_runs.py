"""What W&B knows of runs, offline or online -> a `Sweep`.

W&B mirrors configuration, history and evaluations, not status.json and data.json. So a run that stopped early though
it ended well is taken to have diverged, in its last row, unless it may stop early (`early_stop`) and its last loss is
finite; the reason is not known, and neither are the number of pairs and the lengths of responses. Interrupted and
failed runs cannot be told apart offline.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.sweep import EVALUATED, INTEGERS, History, RunError, Sweep, SweepError, assemble, checked, flatten

NOT_MIRRORED = ("format", "tracking", "compute")

Logged = Mapping[str, tuple[np.ndarray, np.ndarray]]  # column -> the rows that have it, and its values there


@dataclass(frozen=True)
class WandbRun:
    """One W&B run: one attempt at one of our runs."""

    name: str  # the file, or W&B's id, in words
    wandb_id: str
    started: float  # seconds since 1970
    state: str  # "finished" (which W&B also says of a diverged run), or one of sweep.py's other states
    reason: str
    config: Mapping[str, Any]
    columns: frozenset[str]  # all that were logged, but for those of evaluations
    history: History  # those that were wanted
    evaluations: History = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        return int(self.config.get("attempt", 1))

    @property
    def rows(self) -> int:
        return len(self.history.get("step", ()))


def history_and_evaluations(logged: Logged, rows: int) -> tuple[History, History]:
    """What was logged in so many rows, apart: the columns of the history and those of the evaluations.

    An evaluation is in the row of its step. The last one is made after the last update: its row is no row of the
    history, and has no `loss`.
    """

    def have(*names: str) -> np.ndarray:
        found = np.zeros(rows, bool)
        for name in names:
            if name in logged:
                found[logged[name][0]] = True
        return found

    measured = [name for name in logged if name.startswith(EVALUATED)]
    evaluated = have(*measured)
    of_history = have("loss") | (have("step") & ~evaluated)  # nor is one that holds a table of answers alone

    def columns(names: Iterable[str], wanted: np.ndarray) -> History:
        found = {}
        for name in names:
            at, values = logged[name]
            column = np.full(rows, np.nan)
            column[at] = values
            column = column[wanted]
            found[name] = column.astype(np.int64) if name in INTEGERS and np.isfinite(column).all() else column
        return found

    history = columns((name for name in logged if name not in measured), of_history)
    return history, columns(("step", *measured), evaluated) if measured and "step" in logged else {}


def to_sweep(
    source: str,
    found: Sequence[WandbRun],
    problems: Mapping[str, str],
    expected: tuple[str, list[dict[str, Any]]] | None,
) -> Sweep:
    """`expected`: the sweep's name and runs as sweep.json has them; without it the sweep is whatever was found.

    Raises SweepError if nothing was found, or several sweeps and no word which is meant.
    """
    strays = {name: f"unreadable: {why}" for name, why in problems.items()}
    ours = []
    for run in found:
        if all(isinstance(run.config.get(key), str) for key in ("id", "label", "sweep")):
            ours.append(run)
        else:
            strays[run.name] = "foreign: its configuration has no id, label and sweep"
    sweeps = sorted({str(run.config["sweep"]) for run in ours})
    if expected is None and not ours:
        raise SweepError(f"{source}: no run of this project's found; {len(strays)} others")
    if expected is None and len(sweeps) > 1:
        raise SweepError(f"{source}: holds {len(sweeps)} sweeps, {', '.join(sweeps)}; name one, or give its sweep.json")
    name = expected[0] if expected else sweeps[0]
    attempts: dict[str, list[WandbRun]] = {}
    for run in ours:
        if run.config["sweep"] == name:
            attempts.setdefault(run.config["id"], []).append(run)
    entries = (
        expected[1] if expected else [{"id": id, "label": runs[0].config["label"]} for id, runs in attempts.items()]
    )
    for id in attempts.keys() - {entry["id"] for entry in entries}:
        for run in attempts[id]:
            strays[run.name] = "not in sweep.json"
    records, histories, evaluations = [], {}, {}
    for entry in entries:
        record, read, copies = _one_run(entry, attempts.get(entry["id"], []))
        records.append(record | {"expected": expected is not None})
        strays |= copies
        if read is not None:
            histories[entry["id"]] = read.history
            if read.evaluations:
                evaluations[entry["id"]] = read.evaluations
    return assemble(source, name, records, histories, strays, evaluations)


def _one_run(
    entry: Mapping[str, Any], attempts: Sequence[WandbRun]
) -> tuple[dict[str, Any], WandbRun | None, dict[str, str]]:
    """Its row of `runs`, the W&B run that has its history, and other W&B runs that say the same.

    A run that was begun again, from its start or from a checkpoint, is told to W&B from its first row on as the next
    attempt: the last one holds everything.
    """
    record: dict[str, Any] = {
        "id": entry["id"],
        "label": entry["label"],
        "rows": 0,
        "columns": frozenset(),
        "problem": "",
    }
    if not attempts:
        return record | {"dir": entry.get("dir", ""), "state": "missing", "problem": "no W&B run of this id"}, None, {}
    *earlier, last = sorted(attempts, key=lambda run: (run.attempt, run.started, run.rows))
    copies = {
        run.name: f"a duplicate of {entry['label']}, started before {last.name}"
        for run in earlier
        if run.attempt == last.attempt and run.state == "finished"
    }
    record["dir"] = last.wandb_id
    record |= {key: value for key, value in flatten(_mirrored(last.config)).items() if key not in record}
    try:
        if last.rows:
            checked(last.history, "the history")
    except RunError as error:
        return record | {"state": "unreadable", "problem": str(error)}, None, copies
    short = last.state == "finished" and last.rows < int(last.config.get("steps", last.rows))
    diverged = short and not _may_stop_early(last)
    record |= {
        "state": "diverged" if diverged else last.state,
        "steps_done": last.rows,
        "stopped_at": last.rows - 1 if diverged else last.rows if short else None,
        "reason": "not said in W&B" if diverged else last.reason,
        "rows": last.rows,
        "columns": last.columns if last.rows else frozenset(),
        "attempt": last.attempt,
    }
    return record, last if last.rows else None, copies


def _may_stop_early(run: WandbRun) -> bool:
    """Was it to end before its last step if it no longer gains, and does its record end in a finite loss?"""
    patience = (run.config.get("early_stop") or {}).get("patience")
    loss = run.history.get("loss")
    return patience is not None and loss is not None and bool(np.isfinite(loss[-1]))


def _mirrored(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NOT_MIRRORED and not key.startswith("_")}
