"""`analysis` on 2,000 runs x 1,000 steps x 20 metrics: time and memory to load them, and to draw and tabulate them."""

from tests.analysis.large import COLUMNS, write
from tests.analysis.large import measure as load
from tests.bench.commands import scratch_folder
from tests.bench.large import watched
from tests.bench.page import Section, Target
from tests.bench.timing import Spread

PROSE = """\
{runs:,} run directories of {steps:,} steps and {metrics} metrics, written by `tests.analysis.large` to the letter of
docs/run-directory.md: closed forms of DPO and IPO at {betas} betas and {seeds} seeds, with noise. Loading is
`analysis.load` of all columns in a process of its own, {times} times; its memory is that process's largest resident
set. The figures are the whole command `python -m analysis SWEEP`, with every default figure as PDF and PNG and all
tables, {times} times."""

RUNS, STEPS, SEEDS, TIMES = 2_000, 1_000, 5, 3


def measure(rounds: int, known: dict[str, float]) -> Section:
    with scratch_folder() as folder:
        sweep = write(folder / "sweep", RUNS, STEPS, SEEDS)
        loads = [load(sweep) for _ in range(TIMES)]
        drawn = [watched(["-m", "analysis", str(sweep)], folder) for _ in range(TIMES)]
    seconds, peak = Spread.of([m.seconds for m in loads]), Spread.of([m.peak_gib for m in loads])
    figures = Spread.of([taken for taken, _ in drawn])
    memory = Spread.of([peaks[0] / 2**30 for _, peaks in drawn])
    table = [
        [f"{RUNS:,} runs x {STEPS:,} steps", ""],
        ["`analysis.load`, all columns", f"{seconds:.1f} s"],
        ["its peak memory", f"{peak:.2f} GiB"],
        ["`python -m analysis`: load, figures, tables", f"{figures:.1f} s"],
        ["its peak memory", f"{memory:.2f} GiB"],
    ]
    targets = [
        Target("2,000 runs x 1,000 steps x 20 metrics: load them", 20, seconds, "s", at_most=True),
        Target("the same: memory", 4, peak, "GiB", at_most=True),
        Target("the same: draw all default figures", 60, figures, "s", at_most=True),
    ]
    prose = PROSE.format(
        runs=RUNS, steps=STEPS, metrics=len(COLUMNS) + 1, betas=RUNS // (2 * SEEDS), seeds=SEEDS, times=TIMES
    )
    return Section("Analysing 2,000 runs", prose, table, targets)
