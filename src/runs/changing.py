"""Training runs again, and removing them. Both under the run's lock, so never while another process trains it."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from src.config import run_config
from src.errors import BadInput
from src.launching import locks
from src.launching.compose import Job, compose_jobs
from src.launching.plan import Cell, plan
from src.runs.reading import Run, Sweep, some
from src.store import ENDED, RunDirectory, write_json

CONF = Path(__file__).parents[2] / "conf"
Say = Callable[[str], None]


def refuse_while_trained(runs: Sequence[Run]) -> None:
    """Raises BadInput if a process is training one of them."""
    busy = [run.label for run in runs if locks.held(run.sweep, run.id)]
    if busy:
        raise BadInput(f"{some(busy)}: being trained at this moment; stop that process first")


def rerun(sweep: Sweep, runs: Sequence[Run], force: bool, say: Say) -> int:
    """Compose what made each run and train it again in its place.

    Args:
        force: also runs that finished or diverged; what they have on disk is removed first.

    Returns:
        The sweep's exit code.

    Raises:
        BadInput: before anything is removed.
    """
    refuse_while_trained(runs)
    ended = [run for run in runs if run.state in ENDED]
    if ended and not force:
        states = " and ".join(dict.fromkeys(run.state for run in ended))
        raise BadInput(
            f"{some([run.label for run in ended])}: {states}; --force removes what is there and trains again"
        )
    jobs = _compose(sweep, runs)
    for run in ended:
        lock = locks.acquire(run.sweep, run.id)
        if lock is None:
            raise BadInput(f"{run.label}: another process has begun to train it")
        try:
            RunDirectory(run.path).create(run.config, sys.argv[1:], int(run.status.get("attempt", 1)) + 1)
        finally:
            lock.release()
        say(f"{run.label}: results removed ({run.state} after {run.steps_done} updates)")
    from src.launching.jobs import run_jobs  # imports torch, which a refusal should not wait for

    return run_jobs(jobs).code


def _compose(sweep: Sweep, runs: Sequence[Run]) -> list[Job]:
    """Each run's configuration from its recorded overrides.

    Raises:
        BadInput: they cannot be composed any more, or would now make another run or land elsewhere.
    """
    folder = sweep.folder.absolute()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            master = loader.load_configuration("config", overrides=[], run_mode=RunMode.MULTIRUN)
            jobs = compose_jobs(loader, master, [run.overrides for run in runs])
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(f"{sweep.folder}: recorded overrides cannot be composed any more: {error}") from error
    cells = []
    for (config, overrides), run in zip(jobs, runs, strict=True):
        config.output, config.sweep = str(sweep.folder.parent), folder.name
        config.launcher = jobs[0][0].launcher  # a sweep that grew may have had several; one launch has one
        converted, destination = run_config(config)
        if converted.id != run.id:
            raise BadInput(
                f"{run.label}: its overrides now make run {converted.id}, not {run.id}: conf/ has changed since"
            )
        cells.append(Cell(converted, overrides))
    if plan(cells, destination).folder != folder:
        raise BadInput(f"{folder}: no name that a sweep can have; rename the folder")
    return jobs


def remove(sweep: Sweep, runs: Sequence[Run]) -> list[Run]:
    """Remove run directories, and then their entries in sweep.json; with the last run goes the sweep's own bookkeeping.

    Returns:
        Those that another process began to train in the meantime, and that were left alone.

    Raises:
        BadInput: a folder cannot be written.
    """
    left = []
    try:
        for run in runs:
            lock = locks.acquire(run.sweep, run.id)
            if lock is None:
                left.append(run)
                continue
            try:
                if run.path.is_dir():
                    shutil.rmtree(run.path)
                else:
                    run.path.unlink(missing_ok=True)
            finally:
                lock.release()
        gone = {run.id for run in runs} - {run.id for run in left}
        with locks.sweep_lock(sweep.folder):
            file = sweep.folder / "sweep.json"
            manifest = json.loads(file.read_text())  # again: it may have grown since it was listed
            manifest["runs"] = [entry for entry in manifest["runs"] if entry["id"] not in gone]
            if manifest["runs"]:
                write_json(file, manifest)
            else:
                file.unlink()
        if not manifest["runs"]:
            _remove_empty(sweep.folder)
    except OSError as error:
        raise BadInput(f"{sweep.folder}: {error}") from error
    return left


def _remove_empty(folder: Path) -> None:
    """What a sweep without runs leaves behind; figures and whatever else lies there stay."""
    for name in (".locks", ".checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not any(folder.iterdir()):
        folder.rmdir()
