"""From the cells of a sweep to run directories: identity, labels, the manifest."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import Destination, RunConfig
from src.errors import BadInput
from src.launching.locks import sweep_lock
from src.store import FORMAT, now, write_json

MANIFEST = "sweep.json"


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: its configuration and the overrides that made it."""

    config: RunConfig
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """A run with its place: `dir` is the folder's name inside the sweep's.

    shown_as: what other cells that asked for this very run have in their configuration instead, by dotted key.
    """

    config: RunConfig
    overrides: tuple[str, ...]
    label: str
    dir: str
    shown_as: tuple[Mapping[str, Any], ...] = ()

    @property
    def id(self) -> str:
        return self.config.id

    def plain_config(self, sweep: str) -> dict[str, Any]:
        return {"id": self.id, "label": self.label, "sweep": sweep, **self.config.plain()}


@dataclass(frozen=True)
class Plan:
    """folder is absolute, for workers that start elsewhere; folder_shown is what the user would type."""

    name: str
    folder: Path
    folder_shown: Path
    runs: tuple[Planned, ...]


def plan(cells: Sequence[Cell], destination: Destination) -> Plan:
    """Give every distinct run a label and a folder. Cells that ask for the same run are one run.

    Raises:
        BadInput: the output folder holds something else.
    """
    varied = _varied_keys([cell.overrides for cell in cells])
    asked: dict[str, list[Cell]] = {}
    for cell in cells:
        asked.setdefault(cell.config.id, []).append(cell)
    digest = hashlib.sha256(" ".join(sorted(asked)).encode()).hexdigest()[:6]
    generated = "-".join([*(key.rsplit(".", 1)[-1] for key in varied)] or ["single"]) + f"-{digest}"
    name = _slug(destination.sweep or generated)
    folder = (Path(destination.output) / name).absolute()
    known = {entry["id"]: entry for entry in _read_manifest(folder)["runs"]}
    runs = []
    for run_id, same in asked.items():
        first = same[0].config
        label = known[run_id]["label"] if run_id in known else _label(same, varied)
        place = known[run_id]["dir"] if run_id in known else f"{label}-{run_id}"
        others = {repr(d): d for cell in same[1:] if (d := _differences(first.plain(), cell.config.plain()))}
        runs.append(Planned(first, same[0].overrides, label, place, tuple(others.values())))
    return Plan(name, folder, Path(destination.output) / name, tuple(runs))


def write_manifest(the_plan: Plan, command: Sequence[str]) -> None:
    """Write sweep.json. A named sweep can grow: runs that were asked for earlier stay in it.

    Raises:
        BadInput: the folder cannot be written, or holds something else.
    """
    path = the_plan.folder / MANIFEST
    try:
        the_plan.folder.mkdir(parents=True, exist_ok=True)
        with sweep_lock(the_plan.folder):
            manifest = _read_manifest(the_plan.folder)
            runs = {entry["id"]: entry for entry in manifest["runs"]}
            for run in the_plan.runs:
                entry = {"id": run.id, "label": run.label, "dir": run.dir, "overrides": list(run.overrides)}
                runs.setdefault(run.id, entry)
                shown_as = [d for d in runs[run.id].get("shown_as", []) if d not in run.shown_as]
                if shown_as or run.shown_as:
                    runs[run.id]["shown_as"] = [*shown_as, *run.shown_as]
            made = {"created": manifest.get("created", now()), "command": manifest.get("command", list(command))}
            write_json(path, {"format": FORMAT, "name": the_plan.name, **made, "runs": list(runs.values())})
    except OSError as error:
        raise BadInput(f"output folder {the_plan.folder}: {error}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    """sweep.json, or one without runs where there is none yet."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest.get("format") != FORMAT:
            raise BadInput(f"{path}: format {manifest.get('format')!r}, this version writes format {FORMAT}")
        for entry in manifest["runs"]:
            entry["id"], entry["label"], entry["dir"]
        return manifest
    except FileNotFoundError:
        return {"runs": []}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"output folder {folder}: {path.name} is not a sweep's: {error}") from error


def _differences(ours: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What `other` has instead of ours, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in other.items():
        mine = ours.get(key)
        if isinstance(value, Mapping) and isinstance(mine, Mapping):
            found |= _differences(mine, value, f"{prefix}{key}.")
        elif value != mine:
            found[prefix + key] = value
    return found


def _varied_keys(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Keys that do not have one and the same value in every cell, in the order they were typed."""
    values: dict[str, set[str]] = {}
    for cell in overrides:
        for override in cell:
            key, _, value = override.partition("=")
            values.setdefault(key, set()).add(value)
    return [key for key, seen in values.items() if len(seen) > 1]


def _label(cells: Sequence[Cell], varied: Sequence[str]) -> str:
    """`ipo_beta0.5_adamw`: the loss, then each varied key; a group's choice stands for itself.

    A key on which the cells that ask for this run do not agree has no effect on it, and is left out.
    """
    given = [dict(override.partition("=")[::2] for override in cell.overrides) for cell in cells]
    parts = [cells[0].config.loss.name]
    for key in varied:
        values = {cell.get(key) for cell in given}
        if key != "loss" and len(values) == 1 and (value := values.pop()) is not None:
            is_group = key in {"optimizer", "scheduler", "model", "data", "logps", "sampling", "dtype", "objective"}
            parts.append(value if is_group else f"{key.rsplit('.', 1)[-1]}{value}")
    return _slug("_".join(parts))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:120].strip("-")
