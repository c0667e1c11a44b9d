"""24 short toy runs from the first import to the last file closed."""

from tests.bench.commands import scratch_folder, sweep, timed
from tests.bench.ours import TOY_24
from tests.bench.page import Section, Target
from tests.bench.timing import Spread, by_turns, ratios

PROSE = """\
Seconds of whole commands: 24 toy runs (DPO and IPO) of {steps} steps, with start-up, every row to disk and W&B
offline, and the runs closed. The notes' side is one script that trains the runs one after another, with
`wandb.init(mode="offline")`, `run.log` of its three numbers each step, and `run.finish`; its imports count once,
and it runs with {threads} ({one:.1f} s with one, {two:.1f} s with two in a trial)."""

RUNS, STEPS = 24, 100


def notes_script(threads: int) -> float:
    with scratch_folder() as folder:
        arguments = ["-m", "tests.bench.notes", str(folder), str(RUNS), str(STEPS), str(threads)]
        return timed(arguments, folder, WANDB_SILENT="true")[0]


def measure(rounds: int, known: dict[str, float]) -> Section:
    trial = {threads: notes_script(threads) for threads in (1, 2)}
    threads = min(trial, key=trial.__getitem__)
    samples = by_turns(
        {"ours": lambda: sweep(TOY_24, RUNS, STEPS).seconds, "notes": lambda: notes_script(threads)}, rounds
    )
    return Section(
        "24 toy runs, end to end",
        PROSE.format(steps=STEPS, threads="one thread" if threads == 1 else "two threads", one=trial[1], two=trial[2]),
        [
            ["", "seconds"],
            ["24 runs in stacks", f"{Spread.of(samples['ours']):.2f}"],
            ["the notes' loop with `run.log`", f"{Spread.of(samples['notes']):.1f}"],
        ],
        [Target("24 toy runs x 100 steps, end to end", 5, ratios(samples["notes"], samples["ours"]))],
    )
