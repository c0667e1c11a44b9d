"""What W&B knows of runs, offline or online -> a `Sweep`.

W&B mirrors configuration and history, not status.json and data.json. So a run that stopped early though it ended well
is taken to have diverged, in its last row, unless it may stop early (`early_stop`) and its last loss is finite; the
reason is not known, and neither are the number of pairs and the lengths of responses. Interrupted and failed runs
cannot be told apart offline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.sweep import History, RunError, Sweep, SweepError, assemble, checked, flatten

NOT_MIRRORED = ("format", "tracking", "compute")


@dataclass(frozen=True)
class WandbRun:
    """One W&B run: one attempt at one of our runs."""

    name: str  # the file, or W&B's id, in words
    wandb_id: str
    started: float  # seconds since 1970
    state: str  # "finished" (which W&B also says of a diverged run), or one of sweep.py's other states
    reason: str
    config: Mapping[str, Any]
    columns: frozenset[str]  # all that were logged
    history: History  # those that were wanted

    @property
    def attempt(self) -> int:
        return int(self.config.get("attempt", 1))

    @property
    def rows(self) -> int:
        return len(self.history.get("step", ()))


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
    records, histories = [], {}
    for entry in entries:
        record, history, copies = _one_run(entry, attempts.get(entry["id"], []))
        records.append(record | {"expected": expected is not None})
        strays |= copies
        if history is not None:
            histories[entry["id"]] = history
    return assemble(source, name, records, histories, strays)


def _one_run(
    entry: Mapping[str, Any], attempts: Sequence[WandbRun]
) -> tuple[dict[str, Any], History | None, dict[str, str]]:
    """Its row of `runs`, its history, and other W&B runs that say the same.

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
        history = checked(last.history, "the history") if last.rows else None
    except RunError as error:
        return record | {"state": "unreadable", "problem": str(error)}, None, copies
    short = last.state == "finished" and last.rows < int(last.config.get("steps", last.rows))
    diverged = short and not _may_stop_early(last)
    record |= {
        "state": "diverged" if diverged else last.state,
        "steps_done": last.rows,
        "stopped_at": last.rows - 1 if diverged else None,
        "reason": "not said in W&B" if diverged else last.reason,
        "rows": last.rows,
        "columns": last.columns,
        "attempt": last.attempt,
    }
    return record, history, copies


def _may_stop_early(run: WandbRun) -> bool:
    """Was it to end before its last step if it no longer gains, and does its record end in a finite loss?"""
    patience = (run.config.get("early_stop") or {}).get("patience")
    loss = run.history.get("loss")
    return patience is not None and loss is not None and bool(np.isfinite(loss[-1]))


def _mirrored(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NOT_MIRRORED and not key.startswith("_")}
