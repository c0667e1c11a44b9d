"""2,000 tabular runs in one sweep: time, memory, files, and whether they can still be listed and loaded."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.bench.commands import NotMeasured, check, environment, scratch_folder, timed
from tests.bench.page import Section, Target
from tests.bench.timing import Spread

PROSE = """\
`python -m src.run -m {overrides}`: 2,000 runs of {steps} steps, W&B offline, once. Memory is the resident set,
sampled ten times a second: the largest of the first process, of any of its children, and of all together at one
moment (shared pages counted in each). Listing is `python -m src.runs ls`, loading is a Python that imports
`analysis.load` and loads the sweep; each is timed as a whole command, {times} times."""

STEPS, TIMES = 100, 3
OVERRIDES = (
    "model=tabular", "data=synthetic", "loss=dpo,ipo,hinge,cdpo", "beta=0.1,0.2,0.3,0.4,0.5", "lr=0.1,0.05",
    f"seed={','.join(map(str, range(50)))}",
)  # fmt: skip
SAID = (
    "model=tabular",
    "data=synthetic",
    "loss=dpo,ipo,hinge,cdpo",
    "beta=0.1,0.2,…,0.5",
    "lr=0.1,0.05",
    "seed=0,…,49",
)
RUNS = 2_000
LOAD = "import sys; from analysis.load import load; print(len(load(sys.argv[1]).history))"


def measure(rounds: int, known: dict[str, float]) -> Section:
    with scratch_folder() as folder:
        command = ["-m", "src.run", "-m", *OVERRIDES, f"steps={STEPS}", "sweep=bench"]
        seconds, peaks = watched(command, folder)
        sweep = folder / "outputs" / "bench"
        done = check(sweep, seconds, RUNS, STEPS, tracked=True)
        files = [path for path in sweep.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        loading = [timed(["-c", LOAD, str(sweep)], folder)[0] for _ in range(TIMES)]
        listing = (
            [timed(["-m", "src.runs", "ls", str(sweep)], folder)[0] for _ in range(TIMES)]
            if importlib.util.find_spec("src.runs")
            else []
        )
    first, child, all_of_them = (f"{bytes_ / 2**20:,.0f} MiB" for bytes_ in peaks)
    table = [
        ["2,000 tabular runs", ""],
        ["whole command", f"{seconds:.1f} s"],
        ["of it between the first run's start and the last run's end", f"{done.training:.1f} s"],
        ["peak memory: first process; largest child; all together", f"{first}; {child}; {all_of_them}"],
        ["files", f"{len(files):,}"],
        ["bytes", f"{size / 2**20:,.0f} MiB, {size / RUNS / 2**10:.0f} KiB a run"],
        ["`src.runs ls`", f"{Spread.of(listing):.2f} s" if listing else "not there yet"],
        ["`analysis.load`", f"{Spread.of(loading):.2f} s"],
    ]
    targets = [Target("2,000 runs: load them", 5, Spread.of(loading), "s", at_most=True)]
    if listing:
        targets.insert(0, Target("2,000 runs: list them", 5, Spread.of(listing), "s", at_most=True))
    return Section(
        "2,000 runs in one sweep", PROSE.format(overrides=" ".join(SAID), steps=STEPS, times=TIMES), table, targets
    )


def watched(arguments: Sequence[str], folder: Path) -> tuple[float, tuple[int, int, int]]:
    """Seconds of a command; and peak bytes of its process, of its largest child, and of all together."""
    start = time.perf_counter()
    with (folder / "said").open("w") as said:
        process = psutil.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment(folder), stdout=said, stderr=subprocess.STDOUT
        )
    first = child = together = 0
    while process.poll() is None:
        own, others = _resident(process), []
        try:
            others = [_resident(other) for other in process.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        first, child, together = max(first, own), max([child, *others]), max(together, own + sum(others))
        time.sleep(0.1)
    if process.wait() != 0:
        raise NotMeasured((folder / "said").read_text())
    return time.perf_counter() - start, (first, child, together)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
