"""`python -m analysis watch DIR`: a sweep as it trains, in a terminal.

It reads only what was added since it last looked: the end of each growing history, and the small JSON files that
changed. Verdicts are those of the runs so far, each by itself: C9 and C10, which compare runs, are left out.
"""

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from analysis import collapse
from analysis.run_directories import about_the_data, was_killed
from analysis.sweep import ENDED, RunError, SweepError, assemble, flatten, read_json, read_sweep_file
from analysis.tables import power_of_ten
from analysis.tail import Tail

WAITING = "waiting"  # the run has no directory yet
NOT_JUDGED = ""
BARS = "▁▂▃▄▅▆▇█"
SPARKLINE = 16  # characters
STYLES = {"running": "cyan", "finished": "green", "diverged": "magenta", "failed": "red", "unreadable": "red",
          "interrupted": "yellow"}  # fmt: skip
ORDER = ("running", "unreadable", "failed", "interrupted", "diverged", "finished", "planned", WAITING)
COLUMNS = ("state", "run", "step", "margin h", "nats", "pi(rejected)", "loss", "verdict so far", "ETA")
NUMBERS = ("step", "nats", "pi(rejected)", "loss", "ETA")
LEAST_WANTED = ("loss", "pi(rejected)", "ETA", "margin h", "nats")  # these go first where the terminal is narrow
LABEL = 14  # characters of a run's label, at least
BESIDE = 6  # lines of a frame that are no run
PIPED_WIDTH = 130  # columns of a frame that goes into a file


@dataclass
class Watched:
    """What is known of one run. margin and loss are empty before its first row."""

    id: str
    label: str
    folder: Path
    tail: Tail
    state: str = WAITING
    said: str = WAITING  # by status.json; a run that was killed says that it is running
    problem: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    verdict: str = NOT_JUDGED
    seen: tuple[tuple[int, int], ...] = ()  # when and how long status.json and config.json were
    first: tuple[float, int] | None = None  # the clock and the rows when this began to watch
    rate: float = math.nan  # rows a second

    @property
    def steps(self) -> int:
        return int(self.config.get("steps") or 0)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def to_go(self) -> int:
        return 0 if self.ended else max(self.steps - self.tail.rows, 0)

    def last(self, column: str) -> float:
        values = self.tail.column(column)
        return float(values[-1]) if len(values) else math.nan

    def look(self, now: float) -> bool:
        """Read what changed. True if there are new rows."""
        status = self.folder / "status.json"
        seen = tuple(_stamp(file) for file in (status, self.folder / "config.json"))
        if seen != self.seen:
            self.seen = seen
            self._read_files(status)
        self.state = self.said
        if self.said == "running" and was_killed(self.folder.parent, self.folder, self.id):
            self.state = "interrupted"
        try:
            grew = self.tail.read()
        except RunError as error:
            self.state, self.problem = "unreadable", str(error)
            return False
        if self.first is None or self.tail.rows < self.first[1]:
            self.first = now, self.tail.rows
        seconds, rows = now - self.first[0], self.tail.rows - self.first[1]
        if seconds > 0 and rows:
            self.rate = rows / seconds
        return grew

    def _read_files(self, status: Path) -> None:
        if not status.exists():
            self.said = WAITING
            return
        try:
            self.said = str(read_json(status).get("state"))
            self.config = flatten(read_json(self.folder / "config.json"))
            data = self.folder / "data.json"
            self.data = about_the_data(read_json(data)) if data.exists() else {}
            self.problem = ""
        except RunError as error:
            self.said, self.problem = "unreadable", str(error)

    def record(self) -> dict[str, Any]:
        """As a row of `Sweep.runs`."""
        known = {"id": self.id, "label": self.label, "dir": self.folder.name, "expected": True, "state": self.state}
        return self.config | self.data | known | {"rows": self.tail.rows, "columns": self.tail.names, "problem": ""}


class Watch:
    """A sweep that may still be training."""

    def __init__(self, folder: Path) -> None:
        """Raises SweepError: the folder holds no sweep."""
        self.folder = folder
        self.runs: dict[str, Watched] = {}
        self._listed: tuple[int, int] | None = None
        self._unjudged: set[str] = set()
        self._judge_again = 0.0
        self.name = folder.name
        self.look(judge=False)

    def look(self, judge: bool = True) -> None:
        """Read everything that is new. Raises SweepError if sweep.json cannot be read any more."""
        stamp = _stamp(self.folder / "sweep.json")
        if stamp != self._listed:  # a sweep may grow
            self.name, listed = read_sweep_file(self.folder)
            self._listed = stamp
            for entry in listed:
                path = self.folder / entry["dir"]
                made = Watched(entry["id"], entry["label"], path, Tail(path / "history.arrow", collapse.COLUMNS))
                self.runs.setdefault(entry["id"], made)
        now = time.monotonic()
        for run in self.runs.values():
            if run.look(now):
                self._unjudged.add(run.id)
        if judge and self._unjudged and now >= self._judge_again:
            self._judge()
            taken = time.monotonic() - now
            self._judge_again = now + 5 * taken  # a sixth of a core at most

    def _judge(self) -> None:
        """Verdicts on the runs that grew."""
        those = [self.runs[id] for id in self._unjudged if self.runs[id].tail.rows and self.runs[id].config]
        self._unjudged.clear()
        histories = {run.id: _history(run.tail) for run in those}
        histories = {id: columns for id, columns in histories.items() if "loss" in columns}
        if not histories:
            return
        sweep = assemble(str(self.folder), self.name, [run.record() for run in those], histories, {})
        labels = collapse.verdicts(sweep.runs, sweep.history)["label"].fillna(NOT_JUDGED)
        for id, label in labels.items():
            self.runs[str(id)].verdict = str(label)

    @property
    def over(self) -> bool:
        return all(run.ended for run in self.runs.values())

    @property
    def share(self) -> float:
        """Of all rows there should be, those that there are; a run that ended early is done."""
        planned = [run.steps for run in self.runs.values() if run.steps]
        typical = float(np.mean(planned)) if planned else 1.0  # of a run that has no configuration yet
        done = sum((run.steps or typical) if run.ended else run.tail.rows for run in self.runs.values())
        return done / max(sum(run.steps or typical for run in self.runs.values()), 1)

    def seconds_left(self) -> float:
        """From the speed since this began to watch; NaN where nothing moves."""
        rate = sum(run.rate for run in self.runs.values() if run.state == "running" and run.rate > 0)
        planned = [run.steps for run in self.runs.values() if run.steps]
        typical = float(np.mean(planned)) if planned else 0.0
        left = sum(run.to_go if run.steps or run.ended else typical for run in self.runs.values())
        return left / rate if rate else math.nan

    def headline(self) -> str:
        """Such as `sweep: 40 %, 3 running, 5 finished of 20, ETA 0:02:10`."""
        states = Counter(run.state for run in self.runs.values())
        counted = ", ".join(f"{states[state]} {state}" for state in ORDER if state in states)
        eta = "" if self.over else f", ETA {_duration(self.seconds_left())}"
        return f"{self.name}: {100 * self.share:.0f} %; {counted} of {len(self.runs)}{eta}"

    def frame(self, width: int, lines: int | None = None) -> Group:
        """The table, of as many runs as fit; running ones first, then those that went wrong. A narrow one has fewer
        columns.
        """
        rank = {state: place for place, state in enumerate(ORDER)}
        ordered = sorted(self.runs.values(), key=lambda run: rank.get(run.state, 1))
        shown = ordered if lines is None else ordered[: max(lines - BESIDE, 3)]
        rows = [dict(zip(COLUMNS, _cells(run), strict=True)) for run in shown]
        needed = {title: max(len(title), *(row[title].cell_len for row in rows)) for title in COLUMNS}
        kept, label = [*COLUMNS], width - sum(2 + needed[title] for title in COLUMNS if title != "run")
        for title in LEAST_WANTED:
            if label < min(LABEL, needed["run"]):
                kept.remove(title)
                label += 2 + needed[title]
        needed["run"] = max(min(label, needed["run"]), 1)
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
        for title in kept:
            justify: Literal["right", "left"] = "right" if title in NUMBERS else "left"
            table.add_column(title, justify=justify, width=needed[title], no_wrap=True, overflow="ellipsis")
        for run, row in zip(shown, rows, strict=True):
            row["run"] = Text(_shortened(run.label, needed["run"]))
            table.add_row(*(row[title] for title in kept))
        rest = Counter(run.state for run in ordered[len(shown) :])
        more = f"… and {sum(rest.values())} more: " + ", ".join(f"{n} {state}" for state, n in rest.items())
        return Group(Text(self.headline(), style="bold"), table, *([Text(more, style="dim")] if rest else []))


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every run has ended, or the watching was ended by Ctrl-C. 2: no sweep there."""
    options = _parser().parse_args(arguments)
    try:
        watch = Watch(options.directory)
        console = Console(highlight=False)
        if options.once:
            watch.look()
            width = console.width if console.is_terminal else PIPED_WIDTH
            Console(highlight=False, width=width).print(watch.frame(width))
        elif console.is_terminal:
            _live(watch, console, options.every)
        else:
            _lines(watch, options.every, lambda line: print(line, flush=True))
    except SweepError as error:
        print(f"analysis watch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the usual way to stop watching; the sweep itself goes on
        return 0
    except BrokenPipeError:  # whoever read the lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _live(watch: Watch, console: Console, every: float) -> None:
    with Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop") as live:
        while True:
            watch.look()
            live.update(watch.frame(console.width, console.height), refresh=True)
            if watch.over:
                return
            time.sleep(every)


def _lines(watch: Watch, every: float, say: Callable[[str], None]) -> None:
    """For a file or a pipe: a line when a run changes its state or its verdict, and for each tenth of the sweep."""
    before: dict[str, tuple[str, str]] = {}
    tenth = -1
    while True:
        watch.look()
        for run in watch.runs.values():
            now = run.state, run.verdict
            if now != before.get(run.id) and run.state not in ("planned", WAITING):
                say(" ".join([run.label + ":", *_in_words(run)]))
            before[run.id] = now
        if int(10 * watch.share) > tenth or watch.over:
            tenth = int(10 * watch.share)
            say(watch.headline())
        if watch.over:
            return
        time.sleep(every)


def _in_words(run: Watched) -> list[str]:
    parts = [f"{run.state}, {run.tail.rows} of {run.steps or '?'} steps"]
    if run.tail.rows and not math.isnan(run.last("margin")):
        parts.append(f"margin {run.last('margin'):.4g} nats")
    if run.verdict:
        parts.append(f"verdict so far: {run.verdict}")
    return [", ".join(parts) + (f" ({run.problem})" if run.problem else "")]


def _cells(run: Watched) -> list[Text]:
    style = STYLES.get(run.state, "dim")
    has_rows = run.tail.rows > 0
    margin = run.tail.column("margin")
    if has_rows and np.isnan(margin).all():
        margin = run.tail.column("rewards/margins")  # a reward model
    eta = run.to_go / run.rate if run.state == "running" and run.rate > 0 else math.nan
    verdict = run.problem or run.verdict
    return [
        Text(run.state, style=style),
        Text(run.label),
        Text(f"{run.tail.rows}/{run.steps or '?'}"),
        Text(sparkline(margin, SPARKLINE), style="cyan"),
        Text(f"{margin[-1]:.4g}" if has_rows and math.isfinite(margin[-1]) else ""),
        Text(power_of_ten(run.last("log_pi/rejected"))),
        Text(f"{run.last('loss'):.4g}" if has_rows else ""),
        Text(verdict, style="" if verdict in ("", "none") else "bold red"),
        Text("" if math.isnan(eta) else _duration(eta)),
    ]


def sparkline(values: npt.ArrayLike, width: int) -> str:
    """Means over `width` equal parts as bars from the least to the largest; a blank where none is finite."""
    series = np.asarray(values, dtype=float)
    parts = [part[np.isfinite(part)] for part in np.array_split(series, min(width, max(len(series), 1)))]
    means = np.array([part.mean() if part.size else np.nan for part in parts])
    if np.isnan(means).all():
        return ""
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    height = (means - low) / (high - low) if high > low else np.zeros(len(means))
    return "".join(" " if math.isnan(h) else BARS[round(h * (len(BARS) - 1))] for h in height)


def _shortened(label: str, width: int) -> str:
    """Cut in the middle: seeds stand at the end."""
    if len(label) <= width:
        return label
    end = (width - 1) // 2
    return f"{label[: width - 1 - end]}…{label[len(label) - end :]}"


def _history(tail: Tail) -> dict[str, Any]:
    """The columns that were kept; steps count from 0 (docs/run-directory.md)."""
    kept = [name for name in tail.names if len(tail.column(name)) and not np.isnan(tail.column(name)).all()]
    return {"step": np.arange(tail.rows)} | {name: tail.column(name) for name in kept if name != "step"}


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _duration(seconds: float) -> str:
    return "unknown" if math.isnan(seconds) else str(timedelta(seconds=math.ceil(seconds)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis watch",
        description="Show a sweep as it trains: state, steps, margin, pi(rejected), loss and verdict so far of each "
        "run. Ends when every run has; Ctrl-C ends the watching, not the sweep. Into a file or a pipe it writes a line "
        "for each change instead.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="a sweep's directory, which holds sweep.json")
    parser.add_argument("--once", action="store_true", help="show how the sweep stands now, and end")
    parser.add_argument(
        "--every", metavar="SECONDS", type=_positive, default=1.0, help="how often to look (default: %(default)g)"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: seconds, more than 0")
    return value
