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
    def state(self) -> State | None:
        """The state on disk; None where there is no readable status."""
        try:
            state: State = json.loads((self.path / "status.json").read_text())["state"]
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None
        return state

    def create(self, config: Mapping[str, Any], command: Sequence[str]) -> None:
        """Start from nothing: what an unfinished attempt left is removed."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        write_json(self.path / "config.json", {"format": FORMAT, **config})
        write_json(self.path / "provenance.json", {**provenance(), "command": list(command)})
        self._write_status()

    def start(self, data: Mapping[str, Any], stack: int) -> None:
        write_json(self.path / "data.json", data)
        self.update(state="running", started=now(), stack=stack)

    def update(self, **status: Any) -> None:
        self._status |= status
        self._write_status()

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append rows and flush; whatever happens next, a reader gets these."""
        arrays = {
            name: pa.array(values.astype(np.int64) if name in INTEGERS else values) for name, values in columns.items()
        }
        batch = pa.RecordBatch.from_pydict(arrays)
        if self._writer is None:
            self._file = (self.path / "history.arrow").open("wb")
            self._writer = pa.ipc.new_stream(self._file, batch.schema)
        self._writer.write_batch(batch)
        self._file.flush()

    def end(self, state: State, **status: Any) -> None:
        """Close the history and write the last status. Status comes last: a run that says finished is complete."""
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = None
        self.update(state=state, ended=now(), **status)

    def _write_status(self) -> None:
        write_json(self.path / "status.json", self._status)


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
