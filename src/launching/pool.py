"""The local engine: stacks in this process, or in several."""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch
from torch import Tensor

from src import distributed
from src.launching.work import Ended, Shared, Work, lost, train
from src.train import OnStep, Stop

Report = Callable[[int, int, Sequence[float]], None]  # position of the stack, step, its first margins

SHOWN = 16  # margins of a stack that are reported while it trains
REPORT_SECONDS = 0.25


def run_local(
    works: Sequence[Work], processes: int, shared: Shared, report: Report, stop: Stop
) -> Iterator[list[Ended]]:
    """Train stacks, in no particular order; gives what became of each as it ends."""
    if min(processes, len(works)) > 1:
        yield from _in_processes(works, processes, report, stop)
        return
    for i, work in enumerate(works):
        if stop():
            return
        yield train(work, shared, _every_so_often(partial(report, i)), stop)


def _in_processes(works: Sequence[Work], processes: int, report: Report, stop: Stop) -> Iterator[list[Ended]]:
    context = multiprocessing.get_context("forkserver")
    left, deaths = dict(enumerate(works)), Counter[int]()
    while left and not stop():
        board = _Board(context.RawArray("d", 1 + len(works) * (2 + SHOWN)))
        with ProcessPoolExecutor(min(processes, len(left)), context, _begin_worker, (board,)) as pool:
            waiting = {pool.submit(_train_here, i, work): i for i, work in left.items()}
            while waiting:
                done, _ = wait(waiting, timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED)
                for i in left:
                    if (seen := board.read(i)) is not None:
                        report(i, *seen)
                if stop() and not board.stopping:
                    board.stopping = True
                    pool.shutdown(wait=False, cancel_futures=True)
                for future in done:
                    i = waiting.pop(future)
                    try:
                        ended = future.result()
                    except CancelledError:
                        continue
                    except BrokenProcessPool:
                        deaths[i] += board.began(i)
                        continue
                    del left[i]
                    yield ended
        for i, times in deaths.items():
            if i in left and times > left[i].launcher.retries:
                yield lost(left.pop(i), "its worker process died; killed, or out of memory?")
        processes = max(1, processes // 2)  # only after a death: perhaps there was not enough memory for so many


class _Board:
    """Memory that workers and their parent share: no lock or queue in it, for a worker may die at any moment.

    A flag that asks workers to stop; then, for each stack, whether it was begun, its step + 1 and its first margins.
    """

    def __init__(self, cells: Any) -> None:
        self._cells = cells

    @property
    def stopping(self) -> bool:
        return bool(self._cells[0])

    @stopping.setter
    def stopping(self, yes: bool) -> None:
        self._cells[0] = yes

    def begin(self, stack: int) -> None:
        self._cells[self._at(stack)] = 1

    def began(self, stack: int) -> bool:
        return bool(self._cells[self._at(stack)])

    def write(self, stack: int, step: int, margins: Sequence[float]) -> None:
        at = self._at(stack)
        self._cells[at + 2 : at + 2 + len(margins)] = margins
        self._cells[at + 1] = step + 1

    def read(self, stack: int) -> tuple[int, list[float]] | None:
        at = self._at(stack)
        step = int(self._cells[at + 1]) - 1
        return None if step < 0 else (step, self._cells[at + 2 : at + 2 + SHOWN])

    def _at(self, stack: int) -> int:
        return 1 + stack * (2 + SHOWN)


# ---- in a worker

_board: _Board
_shared: Shared
_orphaned = threading.Event()
_training = threading.Event()


def _begin_worker(board: _Board) -> None:
    global _board, _shared
    _board, _shared = board, Shared.nothing_yet()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says what follows
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    """A worker outlives a parent that was killed only until its current update is made."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    _orphaned.set()
    if not _training.is_set():
        os._exit(1)


def _train_here(stack: int, work: Work) -> list[Ended]:
    _training.set()
    _board.begin(stack)
    try:
        return train(work, _shared, _every_so_often(partial(_board.write, stack)), _must_stop)
    finally:
        _training.clear()
        if _orphaned.is_set():
            os._exit(1)


def _must_stop() -> bool:
    return _board.stopping or _orphaned.is_set()


def _every_so_often(report: Callable[[int, Sequence[float]], None]) -> OnStep:
    last = 0.0

    def on_step(step: int, margins: Callable[[], Tensor]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_SECONDS:
            last = now
            report(step, margins()[:SHOWN].tolist())

    return on_step


def processes_for(threads: int | None, device: torch.device) -> int:
    """As many workers as there are cores for the threads each wants; a GPU and a model that wants all cores get one."""
    cores = len(os.sched_getaffinity(0))
    if distributed.size() > 1:  # the processes are there already, and train one stack together
        return 1
    return 1 if threads is None or device.type != "cpu" else max(1, cores // threads)
