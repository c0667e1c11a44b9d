"""From the cells of a sweep to run directories: identity, labels, the manifest."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import Destination, RunConfig
from src.errors import BadInput
from src.store import FORMAT, now, write_json


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: its configuration and the overrides that made it."""

    config: RunConfig
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """A run with its place: `dir` is the folder's name inside the sweep's."""

    config: RunConfig
    overrides: tuple[str, ...]
    label: str

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def dir(self) -> str:
        return f"{self.label}-{self.id}"


@dataclass(frozen=True)
class Plan:
    name: str
    folder: Path
    runs: tuple[Planned, ...]

    def plain_config(self, run: Planned) -> dict[str, Any]:
        return {"id": run.id, "label": run.label, "sweep": self.name, **run.config.plain()}


def plan(cells: Sequence[Cell], destination: Destination) -> Plan:
    """Give every distinct run a label and a folder. Cells that ask for the same run are one run."""
    varied = _varied_keys([cell.overrides for cell in cells])
    distinct: dict[str, Planned] = {}
    for cell in cells:
        distinct.setdefault(cell.config.id, Planned(cell.config, cell.overrides, _label(cell, varied)))
    digest = hashlib.sha256(" ".join(sorted(distinct)).encode()).hexdigest()[:6]
    generated = "-".join([*(key.rsplit(".", 1)[-1] for key in varied)] or ["single"]) + f"-{digest}"
    name = _slug(destination.sweep or generated)
    return Plan(name, Path(destination.output) / name, tuple(distinct.values()))


def write_manifest(the_plan: Plan, command: Sequence[str]) -> None:
    """Write sweep.json. A named sweep can grow: runs that were asked for earlier stay in it.

    Raises:
        BadInput: the folder cannot be written, or holds something else.
    """
    path = the_plan.folder / "sweep.json"
    earlier: list[dict[str, Any]] = []
    try:
        the_plan.folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            manifest = json.loads(path.read_text())
            if manifest.get("format") != FORMAT:
                raise BadInput(f"{path}: format {manifest.get('format')!r}, this version writes format {FORMAT}")
            earlier = manifest["runs"]
        runs = {entry["id"]: entry for entry in earlier}
        for run in the_plan.runs:
            entry = {"id": run.id, "label": run.label, "dir": run.dir, "overrides": list(run.overrides)}
            runs.setdefault(run.id, entry)
        content = {"format": FORMAT, "name": the_plan.name, "command": list(command), "created": now()}
        write_json(path, {**content, "runs": list(runs.values())})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"output folder {the_plan.folder}: {error}") from error


def _varied_keys(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Keys that do not have one and the same value in every cell, in the order they were typed."""
    values: dict[str, set[str]] = {}
    for cell in overrides:
        for override in cell:
            key, _, value = override.partition("=")
            values.setdefault(key, set()).add(value)
    return [key for key, seen in values.items() if len(seen) > 1]


def _label(cell: Cell, varied: Sequence[str]) -> str:
    """`ipo_beta0.5_adamw`: the loss, then each varied key; a group's choice stands for itself."""
    given = dict(override.partition("=")[::2] for override in cell.overrides)
    parts = [cell.config.loss.name]
    for key in varied:
        if key != "loss" and key in given:
            is_group = key in {"optimizer", "scheduler", "model", "data", "logps", "sampling", "dtype", "objective"}
            parts.append(given[key] if is_group else f"{key.rsplit('.', 1)[-1]}{given[key]}")
    return _slug("_".join(parts))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:120].strip("-")
