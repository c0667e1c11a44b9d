"""One process trains a run. The kernel holds its lock as long as that process lives, and drops it on kill -9 too.

The locks of a sweep are files in its folder `.locks`. They stay there; whether one is held is not written in it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# `held` looks by taking a shared lock for some microseconds. An acquisition that meets it should not give up.
PATIENCE_SECONDS = 0.05
POLL_SECONDS = 0.005


def acquire(sweep: Path, run_id: str) -> FileLock | None:
    """The lock of a run, or None where another process or thread has it. `.release()` gives it back.

    Raises:
        OSError: the sweep's folder cannot be written.
    """
    lock = _lock(sweep, run_id)
    try:
        lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=POLL_SECONDS)
    except Timeout:
        return None
    return lock


def held(sweep: Path, run_id: str) -> bool:
    """Does some process hold the lock of this run now? Writes nothing, so a folder that is read-only will do."""
    try:
        descriptor = os.open(sweep / ".locks" / run_id, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def sweep_lock(sweep: Path) -> Iterator[None]:
    """Wait for, and hold, the right to change sweep.json.

    Raises:
        OSError: the sweep's folder cannot be written.
    """
    with _lock(sweep, "sweep.json"):
        yield


def _lock(sweep: Path, name: str) -> FileLock:
    folder = sweep / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / name, thread_local=False)  # the thread that ends a run need not be the one that began it
