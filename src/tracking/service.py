"""A run through W&B itself: online, and offline for versions of W&B whose files we do not know."""

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, ClassVar

import numpy as np

from src.tracking.about import SUMMARIES, About
from src.tracking.guard import Guarded


class ServiceRun:
    """wandb.init, run.log and run.finish. Each of them may raise anything, or hang when W&B's process does."""

    def __init__(self, about: About, folder: Path, mode: str) -> None:
        import wandb

        _forget_service_of_parent()
        self._run = wandb.init(
            project=about.project,
            entity=about.entity,
            dir=str(folder),
            id=about.id,
            name=about.name,
            group=about.group,
            config=dict(about.config),
            mode=mode,  # type: ignore[arg-type]
            reinit="create_new",
            settings=wandb.Settings(
                console="off", silent=True, quiet=True, save_code=False, disable_git=True, disable_job_creation=True,
                symlink=False, x_save_requirements=False, x_disable_stats=True, x_disable_meta=True,
            ),
        )  # fmt: skip
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        for name, how in SUMMARIES.items():
            self._run.define_metric(name, step_metric="step", summary=f"{how},last")

    def log(self, columns: Mapping[str, np.ndarray]) -> None:
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        for step, row in zip(columns["step"].tolist(), rows, strict=True):
            self._run.log(dict(zip(columns, row, strict=True)), step=step)

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step=step)

    def finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


class InBackground:
    """A tracker in a thread of its own: training waits for it only at the end, and then not for ever.

    A process of W&B's that was killed raises; one that hangs keeps whoever calls it, whatever timeouts it was given.
    """

    patience: ClassVar[float] = 300.0  # seconds to upload what is left; after that it stays on disk, for `wandb sync`

    def __init__(self, tracker: Guarded) -> None:
        self._tracker = tracker
        self._waiting: SimpleQueue[Callable[[], None] | int] = SimpleQueue()
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def log(self, columns: Mapping[str, np.ndarray]) -> None:
        self._waiting.put(partial(self._tracker.log, columns))

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._waiting.put(partial(self._tracker.table, name, step, columns, rows))

    def finish(self, exit_code: int) -> None:
        self._waiting.put(exit_code)
        self._thread.join(self.patience)
        if self._thread.is_alive():
            self._tracker.give_up(TimeoutError(f"no answer for {self.patience:g} s"))
            InBackground.patience = 1.0  # the next run of this process need not find out again
        if self._tracker.given_up:
            _do_not_wait_at_exit()

    def _work(self) -> None:
        self._tracker.begin()
        while not isinstance(item := self._waiting.get(), int):
            item()
        self._tracker.finish(item)


def _forget_service_of_parent() -> None:
    """W&B leaves its process's address in the environment. A worker would find its parent's, which ends with it."""
    service = os.environ.get("WANDB_SERVICE", "")  # version-pid-…
    if service.split("-")[1:2] not in ([], [str(os.getpid())]):
        del os.environ["WANDB_SERVICE"]


@cache
def _do_not_wait_at_exit() -> None:
    """At exit W&B waits for its process, which may be stuck. All runs have ended or been given up by then: end it."""
    atexit.register(_end_service)


def _end_service() -> None:
    import wandb
    from wandb.sdk import wandb_setup

    with suppress(AttributeError):  # there is no public way that does not wait; another version may have no such thing
        wandb_setup.singleton()._connection._proc._process.kill()  # type: ignore[union-attr]
    with suppress(Exception, SystemExit):  # what is wrong has been said
        wandb.teardown()
