"""48 runs of the toy Llama against the notes' loop and TRL's trainer."""

from collections.abc import Callable

import torch

from tests.bench import notes, ours, trl_loop
from tests.bench.commands import sweep
from tests.bench.page import Section, Target
from tests.bench.timing import Samples, Spread, by_turns, ratios

PROSE = """\
The notes' pair and Llama (1.33M parameters), the published loss, float32, lr 5e-5. Run-steps a second: updates of
all runs together. Both baselines train one run; they are measured with one thread and with two, and each round
keeps the better. The notes' loop makes four forward passes a step and reads three numbers. TRL's DPOTrainer has the
reference's log-probs computed beforehand and reports nothing. Both are timed after {warm_up} steps of warm-up.

"48 runs" is `python -m src.run -m {overrides}` with all metrics to disk and to W&B offline every step, and the
default number of worker processes; its rate is all 48 runs' updates over the time from the first run's start to the
last run's end in their status files, W&B's start and finish included. SGD runs take {sgd_steps} steps, Adam and
AdamW {adam_steps}. "Whole command" adds start-up. "A stack in one thread" is `train_stack` alone, with every metric
computed and rows given to nobody."""

STEPS = 80
SGD_STEPS, ADAM_STEPS = 300, 150
STACKS = (1, 4, 8)


def measure(rounds: int, known: dict[str, float], device: str = "cpu") -> Section:
    """`known` gets the launcher's rate and that of a stack, for the floor."""
    gpu = device == "cuda"
    stacks = (1, 8, 48) if gpu else STACKS
    threads = (1,) if gpu else (1, 2)
    contenders: dict[str, Callable[[], float]] = {}
    whole: dict[str, list[float]] = {}

    def launcher(optimizer: str) -> float:
        steps = SGD_STEPS if optimizer == "sgd" else ADAM_STEPS
        arguments = [*ours.TOY_48, f"optimizer={optimizer}", f"compute={device}"]
        ran = sweep(arguments, 48, steps)
        whole.setdefault(optimizer, []).append(ran.run_steps / ran.seconds)
        return ran.run_steps / ran.training

    for n in threads:
        for optimizer in ("sgd", "adam", "adamw"):
            contenders[f"notes {optimizer} {n}"] = with_threads(n, notes.steps_per_second, optimizer, STEPS, device)
        for optimizer in ("sgd", "adamw"):
            contenders[f"trl {optimizer} {n}"] = with_threads(n, trl_loop.steps_per_second, optimizer, STEPS, device)
    for optimizer in ("sgd", "adam", "adamw"):
        for runs in stacks if optimizer != "adam" else ():
            name = f"stack {optimizer} {runs}"
            contenders[name] = with_threads(1, ours.run_steps_per_second, runs, optimizer, STEPS, device)
        contenders[f"launcher {optimizer}"] = lambda optimizer=optimizer: launcher(optimizer)
    samples = by_turns(contenders, rounds)

    best = {
        name: better(samples, name, threads)
        for name in ("notes sgd", "notes adam", "notes adamw", "trl sgd", "trl adamw")
    }
    known["launcher sgd"] = Spread.of(samples["launcher sgd"]).median
    against = {optimizer: ratios(samples[f"launcher {optimizer}"], best[f"notes {optimizer}"]) for optimizer in whole}
    section = Section(
        "The toy Llama: 48 runs, the notes' loop, TRL",
        PROSE.format(
            warm_up=notes.WARM_UP, overrides=" ".join(ours.TOY_48), sgd_steps=SGD_STEPS, adam_steps=ADAM_STEPS
        ),
        [["run-steps a second", "SGD", "Adam", "AdamW"]],
        [
            Target("48 toy runs, SGD, against the notes' loop", 6, against["sgd"], aim=10),
            Target("the same, against TRL", 3.5, ratios(samples["launcher sgd"], best["trl sgd"]), aim=6),
            Target("48 toy runs, Adam, against the notes' loop", 4, against["adam"]),
            Target("48 toy runs, AdamW, against the notes' loop", 4, against["adamw"]),
        ],
    )

    def row(title: str, values: Callable[[str], list[float] | None]) -> None:
        found = [values(optimizer) for optimizer in ("sgd", "adam", "adamw")]
        section.table.append([title, *(f"{Spread.of(v):.1f}" if v else "" for v in found)])

    for name, title in (("notes", "notes' loop, one run"), ("trl", "TRL, one run")):
        for n in threads:
            said = f"{title}, {n} thread{'s' if n > 1 else ''}" if len(threads) > 1 else title
            row(said, lambda o, name=name, n=n: samples.get(f"{name} {o} {n}"))
        if len(threads) > 1:
            row(f"{title}, the better of each round", lambda o, name=name: best.get(f"{name} {o}"))
    for runs in stacks:
        row(f"a stack of {runs} in one thread", lambda o, runs=runs: samples.get(f"stack {o} {runs}"))
    row("48 runs", lambda o: samples[f"launcher {o}"])
    row("48 runs, whole command", whole.get)
    return section


def with_threads(threads: int, measured: Callable[..., float], *arguments: object) -> Callable[[], float]:
    def run() -> float:
        torch.set_num_threads(threads)
        try:
            return measured(*arguments)
        finally:
            torch.set_num_threads(1)

    return run


def better(samples: Samples, name: str, threads: tuple[int, ...]) -> list[float]:
    """Each round's best over thread counts."""
    return [max(values) for values in zip(*(samples[f"{name} {n}"] for n in threads), strict=True)]
