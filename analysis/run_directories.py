"""Run directories (`docs/run-directory.md`, format 1) -> a `Sweep`."""

import fcntl
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.sweep import (
    ENDED,
    FORMAT,
    UNFINISHED,
    History,
    RunError,
    Sweep,
    assemble,
    checked,
    flatten,
    is_wanted,
    read_json,
    read_sweep_file,
)

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins")
CONTINUATION = b"\xff\xff\xff\xff"  # opens every message of an Arrow stream


def read(folder: Path, columns: Collection[str] | None) -> Sweep:
    """Every run that `folder`/sweep.json expects. Only an unreadable sweep.json raises; a bad run is named instead."""
    name, expected = read_sweep_file(folder)
    records: list[dict[str, Any]] = []
    histories: dict[str, History] = {}
    for entry in expected:
        record: dict[str, Any] = {key: entry[key] for key in ("id", "label", "dir")}
        record |= {"expected": True, "rows": 0, "columns": frozenset(), "problem": ""}
        records.append(record)
        run = folder / entry["dir"]
        if not run.is_dir():
            record |= {"state": "missing", "problem": "no such directory"}
            continue
        try:
            found, history = _read_run(run, entry["id"], columns)
            if found["state"] == "running" and was_killed(folder, run, entry["id"]):
                found |= {"state": "interrupted", "reason": "killed: it says running, but nobody holds its lock"}
        except RunError as error:
            record |= {"state": "unreadable", "problem": str(error)}
            continue
        record |= found
        if history is not None:
            histories[entry["id"]] = history
        for n, place in enumerate(entry.get("shown_as", [])):
            copy = record | place | {"id": f"{entry['id']}.{n}", "copy_of": entry["id"]}
            records.append(copy)
            if history is not None:
                histories[copy["id"]], copy["columns"] = _shown_as(history, record, place)
    return assemble(str(folder), name, records, histories, _strays(folder, expected))


def was_killed(sweep: Path, run: Path, id: str) -> bool:
    """Is a run dead that said it is running? One that ended meanwhile has said so before it let go of its lock."""
    return not _is_held(sweep / ".locks" / id) and read_json(run / "status.json").get("state") == "running"


def _is_held(lock: Path) -> bool:
    """Does the process that trains the run live? It holds the lock as long as it does. Looking writes nothing."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_stream(path: Path, columns: Collection[str] | None = None) -> tuple[pa.Table, frozenset[str]]:
    """The rows of an Arrow IPC stream up to its last whole batch; a stream cut off anywhere is no error.

    Of the columns only those wanted are decoded; beside them the names of all. Raises RunError if the file does not
    begin as an Arrow stream does.
    """
    content = path.read_bytes()  # not mapped: a run that is started again truncates the file under a reader
    nothing = pa.table({"step": pa.array([], pa.int64())})
    if _cut_before_first_batch(content):
        return nothing, frozenset()
    try:
        schema = pa.ipc.open_stream(pa.BufferReader(content)).schema
        fields = [i for i, field in enumerate(schema.names) if is_wanted(field, columns)]
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        stream = pa.ipc.open_stream(pa.BufferReader(content), options=options)
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
    return pa.Table.from_batches(batches, schema=stream.schema), frozenset(schema.names)


def _read_run(folder: Path, expected_id: str, columns: Collection[str] | None) -> tuple[dict[str, Any], History | None]:
    config = read_json(folder / "config.json")
    status = read_json(folder / "status.json")
    for name, content in (("config.json", config), ("status.json", status)):
        if content.get("format") != FORMAT:
            raise RunError(f"{name} has format {content.get('format')!r}; this analysis reads format {FORMAT} only")
    if config.get("id") != expected_id:
        raise RunError(f"foreign: config.json says id {config.get('id')!r}, sweep.json expects {expected_id!r}")
    state = status.get("state")
    if state not in (*ENDED, *UNFINISHED):
        raise RunError(f"status.json has state {state!r}; allowed: {', '.join((*UNFINISHED, *ENDED))}")
    data = read_json(folder / "data.json") if (folder / "data.json").is_file() else {}
    table, names = _read_history(folder / "history.arrow", state, status.get("steps_done"), columns)
    history = {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}
    if table.num_rows:
        checked(history, "history.arrow")
    record = flatten(config) | {
        "state": state,
        "steps_done": status.get("steps_done"),
        "stopped_at": status.get("step"),
        "reason": status.get("reason") or "",
        "rows": table.num_rows,
        "columns": names,
        "attempt": status.get("attempt", 1),
        **about_the_data(data),
    }
    return record, history if table.num_rows else None


def _shown_as(history: History, run: dict[str, Any], place: dict[str, Any]) -> tuple[History, frozenset[str]]:
    """The history of a run in another place it was asked for. Its loss does not use beta, its rewards are scaled by it.

    sigma(beta h) cannot be had from its mean over a batch at another beta, and is left out.
    """
    if "beta" not in place or run.get("beta") == place["beta"]:
        return history, run["columns"]
    factor = place["beta"] / run["beta"]
    scaled = {
        name: values * factor if name in REWARDS else values
        for name, values in history.items()
        if name != "implied_preference"
    }
    return scaled, run["columns"] - {"implied_preference"}


def about_the_data(data: dict[str, Any]) -> dict[str, Any]:
    """What `runs` keeps of data.json: how many pairs, and the mean length of a chosen and of a rejected response."""
    pairs, tokens = data.get("pairs"), data.get("response_tokens")
    mean = [count / pairs for count in tokens] if pairs and tokens else [None, None]
    return {"pairs": pairs, "chosen_tokens": mean[0], "rejected_tokens": mean[-1]}


def _read_history(
    file: Path, state: str, steps_done: object, columns: Collection[str] | None
) -> tuple[pa.Table, frozenset[str]]:
    if not file.is_file():
        if state == "finished" or (state == "diverged" and steps_done):
            raise RunError(f"half-written: {state}, but there is no {file.name}")
        return pa.table({}), frozenset()
    table, names = read_stream(file, columns)
    if state in ("finished", "diverged") and table.num_rows != steps_done:
        raise RunError(f"half-written: {file.name} has {table.num_rows} of the {steps_done} rows status.json promises")
    return table, names


def _strays(folder: Path, expected: list[dict[str, Any]]) -> dict[str, str]:
    """Run directories that sweep.json does not list; one of them may be a copy of a run that it does."""
    listed = {entry["dir"] for entry in expected}
    labels = {entry["id"]: entry["label"] for entry in expected}
    strays = {}
    for file in sorted(folder.glob("*/config.json")):
        if file.parent.name not in listed:
            try:
                run = read_json(file).get("id")
            except RunError:
                run = None
            copy = f", a duplicate of {labels[run]}" if run in labels else ""
            strays[file.parent.name] = f"not in sweep.json{copy}"
    return strays


def _cut_before_first_batch(content: bytes) -> bool:
    """Is this the beginning of a stream whose schema message (marker, length, that many bytes) is not all there?"""
    if len(content) < 8:
        return CONTINUATION.startswith(content[:4])
    length = int.from_bytes(content[4:8], "little", signed=True)
    return content[:4] == CONTINUATION and length > len(content) - 8
