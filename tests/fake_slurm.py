#!/usr/bin/env python3
"""As much of Slurm as a sweep needs, on one machine: stands in for the command whose name it is called by.

Arrays run with their `%` of tasks at a time. A job's state is the content of a file in the folder $FAKE_SLURM.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["FAKE_SLURM"])
ARRAY_ID = "77"


def sbatch(script: str) -> None:
    array = re.search(r"--array=0-(\d+)%(\d+)", Path(script).read_text())
    last, at_once = (int(array[1]), int(array[2])) if array else (0, 1)
    names = [f"{ARRAY_ID}_{a}" for a in range(last + 1)] if array else [f"{len(list(FOLDER.iterdir())) + 1000}"]
    (FOLDER / "script").write_text(Path(script).read_text())
    for name in names:
        (FOLDER / name).write_text("PENDING")
    command = [sys.executable, str(Path(__file__).resolve()), "daemon", script, str(at_once), *names]
    subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {names[0].split('_')[0]}")


def daemon(script: str, at_once: str, *names: str) -> None:
    running: dict[str, subprocess.Popen[bytes]] = {}
    left = list(names)
    while left or running:
        for name in [n for n, job in running.items() if job.poll() is not None]:
            (FOLDER / name).write_text("FAILED" if running.pop(name).returncode else "COMPLETED")
        left = [name for name in left if (FOLDER / name).read_text() == "PENDING"]
        if left and len(running) < int(at_once):
            name = left.pop(0)
            job, _, task = name.partition("_")
            ids = {"SLURM_JOB_ID": job + task} | (
                {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task} if task else {}
            )
            (FOLDER / name).write_text("RUNNING")
            running[name] = subprocess.Popen(["bash", script], env=os.environ | ids)
        time.sleep(0.1)


def srun(*arguments: str) -> None:
    given = list(arguments)
    given.remove("--unbuffered")
    files = {given.pop(0): open(_named(given.pop(0)), "a") for _ in range(2)}  # noqa: SIM115
    sys.exit(subprocess.call(given, stdout=files["--output"], stderr=files["--error"]))


def _named(pattern: str) -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID", ""), os.environ.get("SLURM_ARRAY_TASK_ID", "")
    values = {"%A": array, "%a": task, "%j": os.environ["SLURM_JOB_ID"], "%t": "0"}
    return re.sub("%[Aajt]", lambda match: values[match[0]], pattern)


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for job in sorted(FOLDER.glob("[0-9]*")):
        print(f"{job.name}|{job.read_text()}|here")


def scancel(name: str) -> None:
    (FOLDER / name).write_text("CANCELLED by 0")


if __name__ == "__main__":
    name, *rest = Path(sys.argv[0]).name, *sys.argv[1:]
    if name == Path(__file__).resolve().name:
        name, *rest = rest
    globals()[name](*rest)
