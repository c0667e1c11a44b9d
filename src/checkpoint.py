"""Checkpoints of a stack: tensors as safetensors, the rest as JSON, both there or neither."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """Everything a stack needs to go on with update `step` as if it had never stopped."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Checkpoints:
    """The newest snapshot of one stack, in a folder of its own.

    Args:
        minutes, steps: how often `due` says yes; None: never for this reason.
    """

    def __init__(self, folder: Path, minutes: float | None, steps: int | None) -> None:
        self.folder, self._minutes, self._steps = folder, minutes, steps
        self._saved = time.monotonic()

    def due(self, updates: int) -> bool:
        """After so many updates, is it time?"""
        if self._steps is not None and updates % self._steps == 0:
            return True
        return self._minutes is not None and time.monotonic() - self._saved > 60 * self._minutes

    def save(self, snapshot: Snapshot) -> None:
        """Write under a temporary name, rename, and only then drop what came before."""
        partial, final = self.folder / ".partial", self.folder / f"step-{snapshot.step}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # Parameters may be views of one buffer, which safetensors does not write.
        save_file(
            {name: t.detach().cpu().clone() for name, t in snapshot.tensors.items()}, partial / "state.safetensors"
        )
        (partial / "state.json").write_text(json.dumps({"step": snapshot.step, **snapshot.facts}, indent=2) + "\n")
        for file in partial.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for step, earlier in self._found():
            if step < snapshot.step:
                shutil.rmtree(earlier)
        self._saved = time.monotonic()

    def load(self) -> Snapshot | None:
        """The newest snapshot that can be read; None without one."""
        for step, folder in sorted(self._found(), reverse=True):
            try:
                facts = json.loads((folder / "state.json").read_text())
                return Snapshot(step, load_file(folder / "state.safetensors"), facts)
            except (OSError, ValueError, SafetensorError):
                continue  # written by a machine that lost power; the one before it may be whole
        return None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[tuple[int, Path]]:
        return [(int(path.name.removeprefix("step-")), path) for path in self.folder.glob("step-*")]
