"""The run directory (docs/run-directory.md): written here, read by `analysis`."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

FORMAT = 1
HISTORY = "history.arrow"
EVALUATIONS, PROBES, SAMPLES = "evaluations.arrow", "probes.arrow", "samples.jsonl"
INTEGERS = {"step", "tokens", "pairs", "nonfinite", "pair"}
Columns = dict[str, np.ndarray]
State = Literal["planned", "running", "finished", "diverged", "failed", "interrupted"]
ENDED: tuple[State, ...] = ("finished", "diverged")  # asked for again, these are left alone


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write under a temporary name and rename: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._streams: dict[str, _Stream] = {}
        self._status: dict[str, Any] = {"format": FORMAT, "state": "planned"}

    @property
    def status(self) -> dict[str, Any]:
        """status.json; empty where there is none that can be read."""
        try:
            status = json.loads((self.path / "status.json").read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    @property
    def state(self) -> State | None:
        """The state on disk; None where there is no readable status."""
        return self.status.get("state")

    def create(self, config: Mapping[str, Any], command: Sequence[str], attempt: int = 1) -> None:
        """Start from nothing: what an unfinished attempt left is removed."""
        self._close()
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != "status.json":  # replaced last: the number of attempts is remembered there
                left.unlink()
        write_json(self.path / "config.json", {"format": FORMAT, **config})
        write_json(self.path / "provenance.json", {**provenance(), "command": list(command)})
        self._status["attempt"] = attempt
        self._write_status()

    def start(self, data: Mapping[str, Any], stack: int) -> None:
        write_json(self.path / "data.json", data)
        self.update(state="running", started=now(), stack=stack)

    def resume(self, rows: int, stack: int, step: int, every: int | None = None) -> tuple[Columns, Columns] | None:
        """Go on from `step` updates with a history of so many rows, and give them and the evaluations, in columns.

        Later rows are cut off, of the files of evaluations those of `step` and after: there the run is evaluated next.
        None, and nothing is changed, where the history on disk is shorter, or there are fewer evaluations than one
        every so many rows.
        """
        history = read_stream(self.path, HISTORY) if rows else None
        if rows and (history is None or len(history) < rows):
            return None
        kept = {file: _before(read_stream(self.path, file), step) for file in (EVALUATIONS, PROBES)} if every else {}
        evaluations = kept.get(EVALUATIONS)
        if every and (0 if evaluations is None else len(evaluations)) < -(-rows // every):
            return None
        self.adopt()
        resumed = [*self._status.get("resumed", []), {"step": rows, "at": now()}]
        self.update(state="running", stack=stack, attempt=self._status.get("attempt", 1) + 1, resumed=resumed)
        if history is not None:
            kept[HISTORY] = history = history.slice(0, rows)
        for file, table in kept.items():
            if table is not None:
                self._streams[file] = _Stream.replacing(self.path / file, table.combine_chunks())
        if samples := read_samples(self.path):
            temporary = self.path / ".samples"
            _append_lines(temporary, [row for row in samples if row["step"] < step], "w")
            temporary.rename(self.path / SAMPLES)
        return columns_of(history), columns_of(evaluations)

    def adopt(self) -> None:
        """Take over the status another process left."""
        self._status = self.status or self._status

    def update(self, **status: Any) -> None:
        self._status |= status
        self._write_status()

    def append(self, columns: Mapping[str, np.ndarray], file: str = HISTORY) -> None:
        """Append rows and flush; whatever happens next, a reader gets these."""
        batch = pa.RecordBatch.from_arrays([_array(name, x) for name, x in columns.items()], list(columns))
        if file not in self._streams:
            self._streams[file] = _Stream(self.path / file, batch.schema)
        self._streams[file].write(batch)

    def append_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a line each to samples.jsonl."""
        _append_lines(self.path / SAMPLES, rows)

    def end(self, state: State, **status: Any) -> None:
        """Close the history and write the last status. Status comes last: a run that says finished is complete."""
        self._close()
        self.update(state=state, ended=now(), **status)

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()

    def _write_status(self) -> None:
        write_json(self.path / "status.json", self._status)


class _Stream:
    """An Arrow IPC stream that is appended to."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, schema)

    @classmethod
    def replacing(cls, path: Path, table: pa.Table) -> Self:
        """One that begins with this table; what stood there stays until that is written."""
        temporary = path.with_name(f".{path.stem}")
        made = cls(temporary, table.schema)
        for batch in table.to_batches():
            made.write(batch)
        temporary.rename(path)
        return made

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)
        self._file.flush()

    def close(self) -> None:
        self._writer.close()
        self._file.close()


def _array(name: str, values: np.ndarray) -> pa.Array:
    """Over the same memory; `pa.array` would import pandas first, to see whether this is a Series."""
    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    kind = np.int64 if name in INTEGERS else np.float64
    return pa.Array.from_buffers(pa.from_numpy_dtype(kind), len(values), [None, pa.py_buffer(values.astype(kind))])


def read_history(folder: Path) -> pa.Table | None:
    """Every whole record batch of a run's history; None where there is none."""
    return read_stream(folder, HISTORY)


def columns_of(table: pa.Table | None) -> Columns:
    return {} if table is None else {name: table[name].to_numpy() for name in table.column_names}


def _before(table: pa.Table | None, step: int) -> pa.Table | None:
    return None if table is None else table.slice(0, int((table["step"].to_numpy() < step).sum()))


def _append_lines(file: Path, rows: Iterable[Mapping[str, Any]], mode: str = "a") -> None:
    with file.open(mode, encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of samples.jsonl; none where there is no such file."""
    try:
        *lines, _cut_off = (folder / SAMPLES).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def read_stream(folder: Path, file: str) -> pa.Table | None:
    """Every whole record batch of an Arrow file of a run; None where there is none."""
    batches = []
    try:
        with pa.ipc.open_stream(pa.memory_map(str(folder / file))) as stream:
            try:
                while True:
                    batches.append(stream.read_next_batch())
            except (StopIteration, pa.ArrowInvalid, OSError):  # its end, or where it was cut off
                return pa.Table.from_batches(batches, stream.schema)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Code, library versions and machine, as far as they can be told."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain")
    libraries = ("torch", "transformers", "hydra-core", "wandb", "datasets", "numpy", "pyarrow")
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in libraries},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "argv0": Path(sys.argv[0]).name,
    }
