"""What a person sees while a sweep trains: a live display on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

REFRESH_SECONDS = 0.25
PLAIN_SECONDS = 10.0
SHOWN_RUNS = 16


class SweepProgress:
    """Runs done, run-steps a second, current margins."""

    def __init__(self, runs: int, run_steps: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live_display = self._console.is_terminal
        self._runs, self._runs_done = runs, 0
        self._labels: Sequence[Sequence[str]] = ()
        self._steps: Sequence[int] = ()
        self._done: dict[int, int] = {}  # updates of each stack that has begun
        self._margins: dict[int, Sequence[float]] = {}  # of the stacks that were heard of last
        self._started = self._drawn = time.monotonic()
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

    def begin(self, labels: Sequence[Sequence[str]], steps: Sequence[int]) -> None:
        """The stacks that are to be trained: the labels of each one's runs, and its updates."""
        self._labels, self._steps = labels, steps
        self._done.clear()
        self._margins.clear()

    def step(self, stack: int, step: int, first_margins: Sequence[float]) -> None:
        """After update `step` of a stack, with the margins of its first runs, in nats."""
        self._done[stack], self._margins[stack] = step + 1, first_margins
        now = time.monotonic()
        if now - self._drawn < (REFRESH_SECONDS if self._live_display else PLAIN_SECONDS):
            return
        self._drawn = now
        going = [i for i in self._margins if self._done[i] < self._steps[i]]
        run_steps = sum(updates * len(self._labels[i]) for i, updates in self._done.items())
        rate = run_steps / max(1e-9, now - self._started)
        note = f"{self._runs_done} of {self._runs} runs done, {rate:.3g} run-steps/s"
        if not self._live_display:
            for i in going:
                margins = ", ".join(f"{m:.3g}" for m in self._margins[i][: len(self._labels[i])][:SHOWN_RUNS])
                at = f"stack of {len(self._labels[i])} at step {self._done[i]}/{self._steps[i]}"
                self._console.print(f"{note}, {at}; margins {margins}", soft_wrap=True)
            return
        table = Table("run", "step", "margin h", box=None, pad_edge=False)
        rows = [(label, i, m) for i in going for label, m in zip(self._labels[i], self._margins[i], strict=False)]
        for label, i, margin in rows[:SHOWN_RUNS]:
            table.add_row(label, str(self._done[i]), f"{margin:+.4g}")
        if (more := sum(len(self._labels[i]) for i in going) - SHOWN_RUNS) > 0:
            table.add_row(f"and {more} more", "", "")
        self._bar.update(self._task, completed=run_steps, note=note)
        self._live.update(Group(table, self._bar), refresh=True)

    def ended(self, runs: int) -> None:
        self._runs_done += runs

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False)
