"""Upload the finished offline runs of sweeps to W&B: `python -m src.sync outputs/<sweep>`.

The uploading is `wandb sync`'s. It leaves a `.synced` file beside what it has uploaded, so that an interrupted upload
goes on where it was. Runs that may still be trained on are left alone: their mirror is written anew when they are.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from src.errors import BadInput
from src.runs.reading import Run, read_sweep
from src.store import ENDED

AT_ONCE = 500  # paths on one command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1: some could not be uploaded; 2: bad input, or not logged in; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m src.sync", description="Upload finished offline runs to W&B.")
    parser.add_argument("sweeps", nargs="+", type=Path, metavar="SWEEP_FOLDER")
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="runs uploaded at a time (8)")
    options = parser.parse_args(arguments)
    try:
        if options.jobs < 1:
            raise BadInput(f"--jobs {options.jobs}: at least 1")
        files = _to_upload([run for sweep in options.sweeps for run in read_sweep(sweep).runs])
        if files:
            _log_in()
    except BadInput as error:
        print(f"sync: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return _upload(files, options.jobs)


def _to_upload(runs: Sequence[Run]) -> list[Path]:
    """The files to upload. Says what is left out, and why."""
    files, left = [], Counter[str]()
    for run in runs:
        mirrors = sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"))
        waiting = [mirror for mirror in mirrors if not _synced(mirror)]
        if run.state not in ENDED:
            left[run.state] += 1
        elif not mirrors:
            left["without offline files"] += 1
        elif not waiting:
            left["uploaded before"] += 1
        files += waiting if run.state in ENDED else []
    print(f"sync: {len(files)} to upload" + "".join(f"; {n} {why}" for why, n in left.items()), flush=True)
    return files


def _log_in() -> None:
    """Raises BadInput where W&B does not let us in. It would ask for a key, if it were not told to be silent."""
    os.environ["WANDB_MODE"] = "online"  # whatever mode runs are made in, this is asked for now
    loud = os.environ.get("WANDB_SILENT")
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    try:
        wandb.login()
    except wandb.Error as error:
        raise BadInput(f"not logged in to W&B: {error} Or set WANDB_API_KEY.") from error
    finally:
        wandb.teardown()
        os.environ.pop("WANDB_SILENT")
        os.environ |= {"WANDB_SILENT": loud} if loud else {}


def _upload(files: Sequence[Path], jobs: int) -> int:
    interrupted = False
    try:
        with TemporaryDirectory() as elsewhere:  # `wandb sync` leaves a log in the folder it is run in
            for first in range(0, len(files), AT_ONCE):
                paths = [str(file.resolve()) for file in files[first : first + AT_ONCE]]
                command = [sys.executable, "-m", "wandb", "sync", "-n", str(jobs), *paths]
                subprocess.run(command, cwd=elsewhere, stdin=subprocess.DEVNULL)
    except KeyboardInterrupt:
        interrupted = True
    missing = len(files) - sum(map(_synced, files))
    print(f"sync: {len(files) - missing} uploaded" + (f"; {missing} not, the same command goes on" if missing else ""))
    return 130 if interrupted else int(missing > 0)


def _synced(file: Path) -> bool:
    return file.with_name(f"{file.name}.synced").exists()


if __name__ == "__main__":
    sys.exit(main())
