"""Engines for more than one machine. A stack is one task of Ray, or one job of Slurm.

Workers read and write the sweep's folder themselves, so it has to be on a file system that all of them share. What they
hand back is only how each run ended.
"""

import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from src.config import Launcher, one_line
from src.errors import BadInput
from src.launching.plan import MANIFEST
from src.launching.work import Ended, Shared, Work, lost, train
from src.train import Stop

if TYPE_CHECKING:
    import submitit

POLL_SECONDS = 0.5
CONNECT_SECONDS = 10.0
LEASH_SECONDS = 1.0  # how often a worker looks whether its stack is still wanted
OBJECT_STORE_BYTES = 80 * 2**20  # about the least Ray accepts: tasks hand back some lines of text
PACKAGES = {"ray": "ray", "slurm": "submitit"}
PER_STACK = {"nodes": "1", "tasks_per_node": "1", "cpus_per_task": "launcher.cpus", "gpus_per_node": "launcher.gpus"}
SHARED_BY_CLUSTERS = {"name", "timeout_min", "mem_gb", "stderr_to_stdout"}  # submitit's; others are Slurm's own


def check_engine(launcher: Launcher, device: str) -> None:
    """Find what is wrong with the engine before anything is created.

    Args:
        device: `compute.device` of the runs.

    Raises:
        BadInput: its package or Slurm is missing, the cluster cannot be reached, or it cannot give what a stack asks.
    """
    engine, gpus = launcher.engine, launcher.gpus
    if engine == "local":
        return
    if find_spec(PACKAGES[engine]) is None:
        raise BadInput(f"launcher.engine={engine} needs {PACKAGES[engine]}: pip install 'margincall[{engine}]'")
    if device == "cuda" and not gpus:
        raise BadInput("launcher.gpus=0.0 with compute=cuda: a stack would see no GPU; give launcher.gpus=1")
    if gpus % 1 and (engine == "slurm" or gpus > 1):
        allowed = "0, 1, 2, …; only Ray takes fractions" if engine == "slurm" else "a fraction of one, or 1, 2, …"
        raise BadInput(f"launcher.gpus={gpus}: allowed are {allowed}")
    if engine == "slurm":
        with tempfile.TemporaryDirectory() as scratch:
            _executor(Path(scratch), launcher)
        return
    nodes = [_this_machine()]
    if launcher.address:
        _refuse_unreachable(launcher.address)
        with _ray(launcher) as ray:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= launcher.cpus and node.get("GPU", 0) >= gpus for node in nodes):
        has = "; ".join(sorted({f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes}))
        asked = f"launcher.cpus={launcher.cpus} launcher.gpus={gpus:g}"
        raise BadInput(f"{asked}: no node of the Ray cluster has as many; they have {has}")


# ---- what both have in common


@contextmanager
def _leash(folder: Path) -> Iterator[Path]:
    """A file that is there as long as this process wants its stacks trained; workers stop when it is gone.

    Its absence is the sign, not its presence: a network file system may remember for half a minute that a file was not
    there, but asks again before it opens one.
    """
    leash = folder / f".wanted-{uuid4().hex[:10]}"
    leash.touch()
    try:
        yield leash
    finally:
        leash.unlink(missing_ok=True)


def _train_there(work: Work, leash: Path, stop: Stop = lambda: False) -> list[Ended]:
    """In a worker: train a stack until it is no longer wanted.

    Raises:
        FileNotFoundError: the sweep's folder is not there.
    """
    if not (work.folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{work.folder} is not on a file system that {os.uname().nodename} shares")
    if not _is_there(leash):
        return []
    looked = time.monotonic()

    def must_stop() -> bool:
        nonlocal looked
        if time.monotonic() - looked > LEASH_SECONDS:
            if not _is_there(leash):
                return True
            looked = time.monotonic()
        return stop()

    return train(work, _shared(), stop=must_stop)


def _is_there(path: Path) -> bool:
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return False
    return True


@cache
def _shared() -> Shared:
    """Ray gives one process many stacks: their data and reference log-probs are made once."""
    return Shared.nothing_yet()


# ---- Ray


def run_on_ray(works: Sequence[Work], stop: Stop) -> Iterator[list[Ended]]:
    """Train stacks as tasks of a Ray cluster, in no particular order; gives what became of each as it ends.

    Ray starts a task again whose worker was lost, `launcher.retries` times, on whichever node has room.
    """
    launcher = works[0].launcher
    with _ray(launcher) as ray, _leash(works[0].folder) as leash:
        task = ray.remote(_train_there).options(
            num_cpus=launcher.cpus,
            num_gpus=launcher.gpus,
            max_retries=launcher.retries,
            retry_exceptions=True,  # `train` reports what goes wrong; what it raises is the fault of the place
        )
        waiting = {task.remote(work, leash): work for work in works}
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=POLL_SECONDS)
            if stop():
                leash.unlink(missing_ok=True)  # tasks that have not begun return at once
            for reference in done:
                work = waiting.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None) or error
                    yield lost(work, f"its worker was lost: {type(cause).__name__}: {one_line(cause)[:300]}")


@contextmanager
def _ray(launcher: Launcher) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `launcher.address`, or to one of its own on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)  # what it says before `logging_level` counts
    where: dict[str, Any] = {"address": launcher.address}
    if launcher.address is None:
        has = _this_machine()
        where = {"address": "local", "num_cpus": has["CPU"], "num_gpus": has["GPU"], "include_dashboard": False}
        where["object_store_memory"] = OBJECT_STORE_BYTES
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BadInput(f"launcher.address={launcher.address}: {one_line(error)}") from error
    try:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there, which exits
        yield ray
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise BadInput(f"launcher.address={address}: {error}") from error


def _this_machine() -> dict[str, int]:
    return {"CPU": len(os.sched_getaffinity(0)), "GPU": torch.cuda.device_count()}


# ---- Slurm


def run_on_slurm(works: Sequence[Work], stop: Stop) -> Iterator[list[Ended]]:
    """Train stacks as an array of Slurm jobs, in no particular order; gives what became of each as it ends.

    A job that is lost is submitted again, `launcher.retries` times. One that is preempted or out of time goes back to
    the queue by itself, and on from its checkpoint.

    Raises:
        BadInput: Slurm does not take the jobs.
    """
    from submitit.core.utils import UncompletedJobError

    launcher, losses = works[0].launcher, Counter[str]()
    with _leash(works[0].folder) as leash:
        folder = works[0].folder / leash.name.replace("wanted", "submitit")
        executor = _executor(folder, launcher)
        waiting = _submit(executor, works, leash)
        while waiting:
            for job in [job for job in waiting if job.done()]:
                work = waiting.pop(job)
                try:
                    ended = job.result()
                except UncompletedJobError:
                    first = work.runs[0].id
                    losses[first] += 1
                    if losses[first] > launcher.retries:
                        yield lost(work, f"its job was lost: {job.state}; see {job.paths.stderr}")
                    elif not stop():
                        waiting |= _submit(executor, [work], leash)
                else:
                    yield ended
            if waiting and stop() and leash.exists():
                leash.unlink()  # jobs that run end by themselves; the others …
                next(iter(waiting)).get_info(mode="force")
                for job in [job for job in waiting if job.state != "RUNNING"]:
                    job.cancel(check=False)
                    del waiting[job]
            time.sleep(POLL_SECONDS)
        if not losses and not stop():  # else somebody may want to read the logs
            shutil.rmtree(folder, ignore_errors=True)


def _executor(folder: Path, launcher: Launcher) -> "submitit.AutoExecutor":
    import submitit

    given = dict(launcher.slurm or {})
    cluster = given.pop("cluster", "slurm")
    for key in PER_STACK.keys() & given.keys():
        raise BadInput(f"launcher.slurm.{key}={given[key]!r}: a stack is one process; {key} is {PER_STACK[key]}")
    if cluster == "slurm" and (missing := [c for c in ("sbatch", "srun", "sacct") if shutil.which(c) is None]):
        raise BadInput(
            f"launcher.engine=slurm: there is no {missing[0]} on this machine; start sweeps where Slurm is, or try "
            "+launcher.slurm.cluster=local"
        )
    parameters = {"name": "margincall", "timeout_min": 60, **given}
    try:
        # A stack that ran out of time has got further, so it may do so again and again.
        again = {} if cluster == "debug" else {f"{cluster}_max_num_timeout": 1000}
        executor = submitit.AutoExecutor(folder, cluster, **again)
        executor.update_parameters(
            cpus_per_task=launcher.cpus,
            gpus_per_node=int(launcher.gpus) or None,
            **{k if k in SHARED_BY_CLUSTERS else f"slurm_{k}": v for k, v in parameters.items()},
        )
    except (AssertionError, NameError, ValueError, TypeError) as error:
        raise BadInput(f"launcher.slurm={dict(launcher.slurm or {})}: {one_line(error)}") from error
    return executor


def _submit(
    executor: "submitit.AutoExecutor", works: Sequence[Work], leash: Path
) -> "dict[submitit.Job[list[Ended]], Work]":
    import submitit
    from submitit.helpers import clean_env

    # Processes that are started now inherit the mask: Ctrl-C reaches them all, and only this one is to answer it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with clean_env():  # a sweep may be started from within a job
            jobs = executor.submit_array([_SlurmJob(work, leash) for work in works])
    except submitit.core.utils.FailedJobError as error:
        raise BadInput(f"launcher.engine=slurm: {one_line(error)}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return dict(zip(jobs, works, strict=True))


@dataclass(frozen=True)
class _SlurmJob:
    """What submitit calls in a job. It is asked for a `checkpoint` when the job is to make room, or out of time."""

    work: Work
    leash: Path

    def __call__(self) -> list[Ended]:
        """submitit's handler of that signal puts the job in the queue and exits: here, after a checkpoint of ours."""
        import submitit

        number = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
        asked: list[tuple[int, FrameType | None]] = []
        requeue: Any = signal.signal(number, lambda *arguments: asked.append(arguments))
        ended = _train_there(self.work, self.leash, lambda: bool(asked))
        signal.signal(number, requeue)
        if asked and any(run.state == "interrupted" for run in ended):
            requeue(*asked[0])
        return ended

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        import submitit

        return submitit.helpers.DelayedSubmission(self)
