"""Whole commands in subprocesses, each in a folder of its own, timed from outside and checked afterwards."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

REPO = Path(__file__).parent.parent.parent


class NotMeasured(RuntimeError):
    """A command failed, or did not do the work that was to be timed."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def environment(home: Path) -> dict[str, str]:
    """A plain user's: no thread counts and no W&B or Hydra settings of ours, an empty home folder."""
    ours = ("WANDB_", "HYDRA_", "OMP_", "MKL_", "XDG_", "HF_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    # W&B's error reports and transformers' hub lookups would wait for a network.
    offline = {"WANDB_ERROR_REPORTING": "false", "HF_HUB_OFFLINE": "1"}
    return kept | offline | {"PYTHONPATH": str(REPO), "HOME": str(home), "COLUMNS": "80"}


def timed(arguments: Sequence[str], folder: Path, **extra: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds of `python ARGUMENTS` in `folder`. Raises NotMeasured where it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(folder) | extra, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise NotMeasured(f"python {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds, done


@dataclass(frozen=True)
class Sweep:
    """A sweep that has run: seconds of the whole command, and of training as the runs' own status files have it."""

    seconds: float
    training: float  # from the first run's start to the last run's end: W&B's init and finish included
    run_steps: int
    stacks: list[int]


def sweep(overrides: Sequence[str], runs: int, steps: int, tracked: bool = True) -> Sweep:
    """Run `python -m src.run -m …` in a fresh folder, and see that every row it should have written is there."""
    with scratch_folder() as folder:
        arguments = ["-m", "src.run", "-m", *overrides, f"steps={steps}", "sweep=bench"]
        tracking = [] if tracked else ["tracking=none"]
        seconds, _ = timed([*arguments, *tracking], folder)
        return check(folder / "outputs" / "bench", seconds, runs, steps, tracked)


def check(folder: Path, seconds: float, runs: int, steps: int, tracked: bool) -> Sweep:
    """Raises NotMeasured where a run is missing, did not finish, or lacks rows or its W&B file.

    The W&B file of one run is read to its last row.
    """
    statuses = {path.parent: json.loads(path.read_text()) for path in folder.glob("*/status.json")}
    if len(statuses) != runs:
        raise NotMeasured(f"{len(statuses)} runs instead of {runs}")
    for run, status in statuses.items():
        rows = _rows(run / "history.arrow")
        mirrors = list(run.glob("wandb/**/*.wandb"))
        if (status["state"], rows, len(mirrors)) != ("finished", steps, int(tracked)):
            raise NotMeasured(f"{run.name}: {status['state']}, {rows} rows of {steps}, {len(mirrors)} W&B files")
    if tracked and (mirrored := rows_in_wandb_file(mirrors[0])) != steps:
        raise NotMeasured(f"{mirrors[0].name}: {mirrored} rows of {steps}")
    started, ended = (
        [datetime.fromisoformat(status[key]).timestamp() for status in statuses.values()]
        for key in ("started", "ended")
    )
    stacks = sorted(int(status["stack"]) for status in statuses.values())
    return Sweep(seconds, max(ended) - min(started), runs * steps, stacks)


def rows_in_wandb_file(path: Path) -> int:
    from analysis.wandb_files import records

    return sum(record.WhichOneof("record_type") == "history" for record in records(path))


def _rows(history: Path) -> int:
    stream: Any = pa.ipc.open_stream(history.read_bytes())
    return sum(batch.num_rows for batch in stream)
