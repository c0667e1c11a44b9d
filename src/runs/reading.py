"""Sweeps and runs as they lie on disk, also while they train. Nothing here writes."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from src.errors import BadInput
from src.launching.locks import held
from src.store import FORMAT, State, read_history

UNREADABLE = "unreadable"  # a folder that breaks the contract of docs/run-directory.md
STATES: tuple[str, ...] = (*get_args(State), UNREADABLE)


class Broken(Exception):
    """A file is not what docs/run-directory.md says: which, and why, in one line."""


@dataclass(frozen=True)
class Run:
    """One entry of sweep.json with what its folder says.

    `state` is status.json's word, except that a run which says "running" while nobody holds its lock was killed and is
    "interrupted". `config` is empty where there is none yet.
    """

    sweep: Path
    id: str
    label: str
    dir: str
    overrides: tuple[str, ...]
    state: str
    reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.sweep / self.dir

    @property
    def steps_done(self) -> int | None:
        """Updates made: of a run that did not end by itself, the rows in its history."""
        done = self.status.get("steps_done")
        if done is None and self.state in ("running", "interrupted"):
            return history(self.path)[0]
        return done

    def seconds(self, now: datetime) -> float | None:
        """How long it has trained, up to its end or `now`. Of a killed run nobody knows."""
        started, ended = _time(self.status, "started"), _time(self.status, "ended")
        if ended is None and self.state == "running":
            ended = now
        return (ended - started).total_seconds() if started and ended else None

    def age(self, now: datetime) -> float | None:
        """Seconds since its last change of state."""
        last = _time(self.status, "ended") or _time(self.status, "started")
        return (now - last).total_seconds() if last else None

    def record(self) -> dict[str, Any]:
        """What `ls --json` prints."""
        now = datetime.now(UTC)
        return {
            "sweep": self.sweep.name, "id": self.id, "label": self.label, "dir": str(self.path), "state": self.state,
            "steps_done": self.steps_done, "steps": self.config.get("steps"), "step": self.status.get("step"),
            "reason": self.reason or None, "seconds": self.seconds(now), "age": self.age(now),
        }  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder. `problems` names, in a line each, what in it is half-written or foreign."""

    folder: Path
    manifest: Mapping[str, Any]
    runs: tuple[Run, ...]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.manifest.get("name", self.folder.name))


def find(output: Path, sweep: str) -> Path:
    """The folder of a sweep given by its name under `output` or by its path.

    Raises:
        BadInput: there is none.
    """
    for folder in (output / sweep, Path(sweep)):
        if (folder / "sweep.json").is_file():
            return folder
    there = [folder.name for folder in folders(output)]
    raise BadInput(
        f"{sweep}: no such sweep; {f'{output} has {some(there)}' if there else f'{output} has none (--output DIR)'}"
    )


def folders(output: Path) -> list[Path]:
    """Every folder directly under `output`, by name."""
    try:
        return sorted(path for path in output.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def read_sweep(folder: Path) -> Sweep:
    """Read sweep.json and the JSON files of every run it names.

    Raises:
        BadInput: sweep.json is missing or not ours.
    """
    try:
        manifest = _json(folder / "sweep.json")
        entries = manifest.get("runs")
        if not isinstance(entries, list) or not all(_names_a_run(entry) for entry in entries):
            raise Broken("sweep.json: `runs` is not a list of objects with id, label, dir and overrides")
    except Broken as error:
        raise BadInput(f"{folder}: {error}") from error
    runs = tuple(_read_run(folder, entry) for entry in entries)
    problems = [f"{run.path}: {run.reason}" for run in runs if run.state == UNREADABLE]
    listed = {run.dir for run in runs}
    strays = [f.parent for f in sorted(folder.glob("*/config.json")) if f.parent.name not in listed]
    problems += [f"{stray}: a run directory that sweep.json does not name" for stray in strays]
    return Sweep(folder, manifest, runs, tuple(problems))


def _names_a_run(entry: object) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("id", "label", "dir")):
        return False
    name = entry["dir"]  # a plain name: `rm` must never follow it out of the sweep's folder
    return bool(name) and Path(name).name == name and isinstance(entry.get("overrides"), list)


def _read_run(folder: Path, entry: Mapping[str, Any]) -> Run:
    path = folder / entry["dir"]
    run = (folder, entry["id"], entry["label"], entry["dir"], tuple(map(str, entry["overrides"])))
    if not path.exists():
        return Run(*run, "planned")
    try:
        status = _json(path / "status.json")
        if status.get("state") not in get_args(State):
            raise Broken(f"status.json: state {status.get('state')!r}")
        config = _json(path / "config.json")
        if config.get("id") != entry["id"]:
            raise Broken(f"config.json: id {config.get('id')!r}, sweep.json says {entry['id']!r}")
    except Broken as error:
        if held(folder, entry["id"]):  # its files are being written at this moment
            return Run(*run, "planned")
        return Run(*run, UNREADABLE, str(error))
    state, reason = status["state"], str(status.get("reason") or "")
    if state == "running" and not held(folder, entry["id"]):
        state, reason = "interrupted", "killed: it says running, but no process holds its lock"
    return Run(*run, state, reason, config, status)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise Broken(f"{file.name} is missing") from None
    except (OSError, ValueError) as error:
        raise Broken(f"{file.name} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or content.get("format", FORMAT) != FORMAT:
        raise Broken(f"{file.name} is not of format {FORMAT}")
    return content


def more(run: Run, file: str) -> dict[str, Any]:
    """provenance.json or data.json of a run, as far as there is one."""
    try:
        return _json(run.path / file)
    except Broken:
        return {}


def history(folder: Path) -> tuple[int, dict[str, Any]]:
    """How many whole rows a history has, and the last of them; (0, {}) where there is none."""
    table = read_history(folder)
    return (len(table), table.slice(len(table) - 1).to_pylist()[0]) if table else (0, {})


def _time(status: Mapping[str, Any], key: str) -> datetime | None:
    try:
        return datetime.fromisoformat(status[key])
    except (KeyError, TypeError, ValueError):
        return None


# ---- choosing


def choose(runs: Sequence[Run], wanted: Sequence[str], states: Sequence[str], where: Sequence[str]) -> list[Run]:
    """Those runs that are named in `wanted` and pass the filters. An empty filter lets everything through.

    Args:
        wanted: ids, beginnings of ids that fit one run, or labels.
        where: `key=value[,value]`, key a dotted path of config.json; a config group stands for its choice's name.

    Raises:
        BadInput: a name fits no run or several, a state does not exist, or no run has the key.
    """
    for state in states:
        if state not in STATES:
            raise BadInput(f"--state {state}: no such state; there are {', '.join(STATES)}")
    conditions = [_condition(text) for text in where]
    for key, _ in conditions:
        known = {name for run in runs for name in _keys(run.config)}
        if known and key not in known:
            near = sorted(name for name in known if "." not in name)
            raise BadInput(f"--where {key}=…: no run has this key; there are {', '.join(near)} and those below them")
    named = {run.id for text in wanted for run in [one(runs, text)]}
    return [
        run
        for run in runs
        if (not wanted or run.id in named)
        and (not states or run.state in states)
        and all(any(_same(_value(run.config, key), value) for value in values) for key, values in conditions)
    ]


def one(runs: Sequence[Run], text: str) -> Run:
    """The run with this id, this label, or the only one whose id begins so.

    Raises:
        BadInput: none or several.
    """
    for fits in (
        [run for run in runs if run.id == text],
        [run for run in runs if run.label == text],
        [run for run in runs if text and run.id.startswith(text)],
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise BadInput(f"{text}: fits {len(fits)} runs; give more of the id: {some([run.id for run in fits])}")
    raise BadInput(f"{text}: no such run; there are {some([f'{run.label} ({run.id})' for run in runs]) or 'none'}")


def counts(runs: Iterable[Run]) -> dict[str, int]:
    """How many runs of each state that occurs, in the states' order."""
    found = Counter(run.state for run in runs)
    return {state: found[state] for state in STATES if found[state]}


def some(names: Sequence[str], at_most: int = 8) -> str:
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")


def _condition(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    if not key or not equals:
        raise BadInput(f"--where {text}: give key=value or key=value,value")
    return key, values.split(",")


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _value(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node.get("name") if isinstance(node, Mapping) else node


def _same(value: Any, text: str) -> bool:
    """Is `text` a way to type this value? 1e-1 is 0.1, and null is a value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text == value if isinstance(value, str) else text.lower() == json.dumps(value)
