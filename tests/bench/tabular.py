"""240 tabular runs in stacks against one after another."""

from tests.bench.commands import sweep
from tests.bench.page import Section, Target
from tests.bench.timing import Spread, by_turns, ratios

PROSE = """\
Softmax tables on ten comparisons (`model=tabular data=synthetic`), {steps:,} steps, every row to disk and to W&B
offline; seconds of whole commands. One after another is the same program through Hydra's own launcher and sweeper
(`hydra/launcher=basic hydra/sweeper=basic`), measured for {few} and for {many} of the runs. 240 of them are put on
the line through these two, so that start-up counts once on both sides."""

RUNS, STEPS = 240, 1_000
COMMON = ("model=tabular", "data=synthetic")
GRID = ("loss=dpo,ipo,hinge,cdpo", "beta=0.1,0.2,0.5", "lr=0.1,0.05", "seed=0,1,2,3,4,5,6,7,8,9")
BASIC = ("hydra/launcher=basic", "hydra/sweeper=basic", "lr=0.1")
FEW, FEW_GRID = 2, ("loss=dpo,ipo",)
MANY, MANY_GRID = 12, ("loss=dpo,ipo,hinge,cdpo", "beta=0.1,0.2,0.5")


def measure(rounds: int, known: dict[str, float]) -> Section:
    samples = by_turns(
        {
            "240 runs": lambda: sweep([*COMMON, *GRID], RUNS, STEPS).seconds,
            "basic, few": lambda: sweep([*COMMON, *BASIC, *FEW_GRID], FEW, STEPS).seconds,
            "basic, many": lambda: sweep([*COMMON, *BASIC, *MANY_GRID], MANY, STEPS).seconds,
        },
        rounds,
    )
    pairs = list(zip(samples["basic, few"], samples["basic, many"], strict=True))
    each = [(many - few) / (MANY - FEW) for few, many in pairs]
    all_of_them = [few + (RUNS - FEW) * slope for (few, _), slope in zip(pairs, each, strict=True)]
    per_run = [1e3 * seconds / RUNS for seconds in samples["240 runs"]]
    return Section(
        "240 tabular runs",
        PROSE.format(steps=STEPS, few=FEW, many=MANY),
        [
            ["", "seconds", "milliseconds a run"],
            ["240 runs in stacks", f"{Spread.of(samples['240 runs']):.2f}", f"{Spread.of(per_run):.1f}"],
            [f"{FEW} one after another", f"{Spread.of(samples['basic, few']):.2f}", ""],
            [f"{MANY} one after another", f"{Spread.of(samples['basic, many']):.2f}", ""],
            [
                "240 one after another, from these",
                f"{Spread.of(all_of_them):.0f}",
                f"{Spread.of([1e3 * s for s in each]):.0f}",
            ],
        ],
        [Target("240 tabular runs against one after another", 50, ratios(all_of_them, samples["240 runs"]))],
    )
