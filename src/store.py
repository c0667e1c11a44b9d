"""The run directory (docs/run-directory.md): written here, read by `analysis`."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

FORMAT = 1
HISTORY = "history.arrow"
INTEGERS = {"step", "tokens", "pairs", "nonfinite"}
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
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
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

    def resume(self, rows: int, stack: int) -> dict[str, np.ndarray] | None:
        """Go on with a history of so many rows, and give them, in columns; later ones are cut off.

        None, and nothing is changed, where the history on disk is shorter.
        """
        history = read_history(self.path) if rows else None
        if rows and (history is None or len(history) < rows):
            return None
        self.adopt()
        resumed = [*self._status.get("resumed", []), {"step": rows, "at": now()}]
        self.update(state="running", stack=stack, attempt=self._status.get("attempt", 1) + 1, resumed=resumed)
        if history is None:
            return {}
        kept = history.slice(0, rows).combine_chunks()
        temporary = self.path / ".history"
        self._open(temporary, kept.schema).write_table(kept)
        self._file.flush()
        temporary.rename(self.path / HISTORY)
        return {name: kept[name].to_numpy() for name in kept.column_names}

    def adopt(self) -> None:
        """Take over the status another process left."""
        self._status = self.status or self._status

    def update(self, **status: Any) -> None:
        self._status |= status
        self._write_status()

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append rows and flush; whatever happens next, a reader gets these."""
        batch = pa.RecordBatch.from_arrays([_array(name, x) for name, x in columns.items()], list(columns))
        if self._writer is None:
            self._writer = self._open(self.path / HISTORY, batch.schema)
        self._writer.write_batch(batch)
        self._file.flush()

    def end(self, state: State, **status: Any) -> None:
        """Close the history and write the last status. Status comes last: a run that says finished is complete."""
        self._close()
        self.update(state=state, ended=now(), **status)

    def _open(self, path: Path, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, schema)
        return self._writer

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = None

    def _write_status(self) -> None:
        write_json(self.path / "status.json", self._status)


def _array(name: str, values: np.ndarray) -> pa.Array:
    """Over the same memory; `pa.array` would import pandas first, to see whether this is a Series."""
    kind = np.int64 if name in INTEGERS else np.float64
    return pa.Array.from_buffers(pa.from_numpy_dtype(kind), len(values), [None, pa.py_buffer(values.astype(kind))])


def read_history(folder: Path) -> pa.Table | None:
    """Every whole record batch of a run's history; None where there is none."""
    batches = []
    try:
        with pa.ipc.open_stream(pa.memory_map(str(folder / HISTORY))) as stream:
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
