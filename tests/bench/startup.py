"""How long one waits before anything trains, and what is imported for it."""

import re

from tests.bench.commands import NotMeasured, check, scratch_folder, timed
from tests.bench.page import Section, Target
from tests.bench.timing import Spread, by_turns

PROSE = """\
Seconds of whole commands, with compiled bytecode there (a first run after installation is slower). The default
four-run sweep is `python -m src.run -m loss=dpo,ipo beta=0.1,0.5`: 300 steps each, W&B offline. Modules are those
that Python's import log names, worker processes included, for runs of five steps."""

HELP = ["-m", "src.run", "--help"]
FOUR = ["-m", "src.run", "-m", "loss=dpo,ipo", "beta=0.1,0.5", "sweep=bench"]
WATCHED = ("transformers", "wandb", "datasets", "pandas", "scipy")
MODELS = {"toy": ("model=tiny_llama",), "tabular": ("model=tabular", "data=synthetic")}


def help_seconds() -> float:
    with scratch_folder() as folder:
        return timed(HELP, folder)[0]


def four_runs() -> float:
    with scratch_folder() as folder:
        seconds, _ = timed(FOUR, folder)
        check(folder / "outputs" / "bench", seconds, runs=4, steps=300, tracked=True)
        return seconds


def imported(*overrides: str) -> set[str]:
    """Top-level packages that a run or a sweep imports, in whichever of its processes."""
    with scratch_folder() as folder:
        _, done = timed(["-m", "src.run", *overrides, "steps=5"], folder, PYTHONPROFILEIMPORTTIME="1")
    names = re.findall(r"import time:.*\|\s+([\w.]+)", done.stderr)
    if "torch" not in names:
        raise NotMeasured("the import log does not even name torch")
    return {name.partition(".")[0] for name in names}


def measure(rounds: int, known: dict[str, float]) -> Section:
    help_seconds()  # so that bytecode is there
    samples = by_turns({"--help": help_seconds, "four runs": four_runs}, rounds)
    table = [["", "seconds"], *([name, f"{Spread.of(values):.2f}"] for name, values in samples.items())]
    table += [["**run**", f"**imports, of {', '.join(WATCHED)}**"]]
    unwanted = 0
    for model, overrides in MODELS.items():
        for tracking in ("none", "wandb_offline"):
            for sweep in ((), ("-m", "loss=dpo,ipo")):
                found = imported(*sweep, *overrides, f"tracking={tracking}") & set(WATCHED)
                unwanted += "transformers" in found or (tracking == "none" and "wandb" in found)
                what = f"{model}, tracking={tracking}, {'a sweep' if sweep else 'one run'}"
                table.append([what, ", ".join(sorted(found)) or "none"])
    return Section(
        "Start-up",
        PROSE,
        table,
        [
            Target("`python -m src.run --help`", 1, Spread.of(samples["--help"]), "s", at_most=True),
            Target("the default four-run sweep", 10, Spread.of(samples["four runs"]), "s", aim=6, at_most=True),
            Target(
                "toy and tabular runs that import transformers, or W&B unasked",
                0, Spread.of([unwanted]), f"of {4 * len(MODELS)}", at_most=True,
            ),
        ],
    )  # fmt: skip
