"""One loader for every place a sweep can lie in: run directories, W&B's offline files, a W&B project."""

from collections.abc import Collection
from pathlib import Path

from analysis import run_directories
from analysis.sweep import Sweep, SweepError, read_sweep_file

WANDB = "wandb://"


def load(
    source: str | Path,
    *,
    columns: Collection[str] | None = None,
    expected: str | Path | None = None,
    cache: Path | None = None,
) -> Sweep:
    """Read every run of a sweep, or name it.

    source: a sweep's directory (it holds sweep.json); or a folder with W&B's offline files (`run-*.wandb`) anywhere
        below it; or `wandb://entity/project[/sweep]`. All three give the same frames, but for what W&B does not hold
        (see `analysis/wandb_runs.py`).
    columns: which columns of the histories to keep, names or patterns such as `log_pi/*/*`; None keeps all.
    expected: for W&B: a sweep.json, or the folder it lies in, to know which runs there should be.
    cache: for a W&B project: where to keep what was downloaded; None is `wandb_project.cache_folder()`.

    A run that is missing, unreadable, unfinished or there twice is no error here: see `Sweep.notices`.

    Raises:
        SweepError: there is no sweep to read.
    """
    if isinstance(columns, str):
        raise TypeError("columns is a collection of names, not one name")
    text = str(source)
    if not text.startswith(WANDB):
        folder = Path(source)
        _must_be_a_folder(folder)
        if (folder / "sweep.json").is_file():
            if expected is not None:
                raise SweepError(f"{folder}: has a sweep.json of its own; `expected` is for W&B's files and projects")
            return run_directories.read(folder, columns)
    named = None
    if expected is not None:
        given = Path(expected)
        named = read_sweep_file(given.parent if given.name == "sweep.json" else given)

    from analysis import wandb_files, wandb_project, wandb_runs  # loading wandb takes a second

    if text.startswith(WANDB):
        path = text.removeprefix(WANDB).strip("/").split("/")
        if len(path) not in (2, 3) or not all(path):
            raise SweepError(f"{text}: give wandb://entity/project or wandb://entity/project/sweep")
        group = path[2] if len(path) == 3 else named[0] if named else None
        kept = cache or wandb_project.cache_folder()
        found, problems = wandb_project.read(path[0], path[1], group, columns, kept)
    else:
        found, problems = wandb_files.read(folder, columns)
        if not found and not problems:
            if (folder / "config.json").is_file():
                raise SweepError(f"{folder}: a run directory; give its sweep's directory, {folder.resolve().parent}")
            raise SweepError(
                f"{folder}: no sweep.json in it, and no run-*.wandb below it; give a sweep's directory, as "
                "`python -m src.run` writes it"
            )
    return wandb_runs.to_sweep(text, found, problems, named)


def _must_be_a_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise SweepError(f"{folder}: no such directory; give a sweep's directory, the one that holds sweep.json")
