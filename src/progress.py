"""What a person sees while a sweep trains: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

REFRESH_SECONDS = 0.25
PLAIN_SECONDS = 10.0
SHOWN_RUNS = 16


class SweepProgress:
    """Runs done, run-steps a second, current margins."""

    def __init__(self, runs: int, run_steps: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live_display = self._console.is_terminal
        self._runs, self._runs_done = runs, 0
        self._labels: Sequence[str] = ()
        self._steps = 0
        self._started = self._drawn = time.monotonic()
        self._run_steps_done = 0
        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=run_steps, note="")
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._live_display:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def stack_begins(self, labels: Sequence[str], steps: int) -> None:
        self._labels, self._steps = labels, steps

    def step(self, step: int, margins: Tensor) -> None:
        """After update `step` of the current stack, with its margins [R]."""
        self._run_steps_done += len(self._labels)
        now = time.monotonic()
        if now - self._drawn < (REFRESH_SECONDS if self._live_display else PLAIN_SECONDS):
            return
        self._drawn = now
        if not self._live_display:
            margin = ", ".join(f"{m:.3g}" for m in margins[:SHOWN_RUNS].tolist())
            self._console.print(f"{self._note(step)}; margins {margin}", soft_wrap=True)
            return
        table = Table("run", "margin h", box=None, pad_edge=False)
        for label, margin in list(zip(self._labels, margins.tolist(), strict=True))[:SHOWN_RUNS]:
            table.add_row(label, f"{margin:+.4g}")
        if len(self._labels) > SHOWN_RUNS:
            table.add_row(f"and {len(self._labels) - SHOWN_RUNS} more", "")
        self._bar.update(self._task, completed=self._run_steps_done, note=self._note(step))
        self._live.update(Group(table, self._bar), refresh=True)

    def stack_ends(self, runs: int) -> None:
        self._runs_done += runs

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)

    def _note(self, step: int) -> str:
        rate = self._run_steps_done / max(1e-9, time.monotonic() - self._started)
        return (
            f"{self._runs_done} of {self._runs} runs done, "
            f"stack of {len(self._labels)} at step {step + 1}/{self._steps}, {rate:.3g} run-steps/s"
        )
