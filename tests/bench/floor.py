"""What the arithmetic of a toy step costs at least on this machine, and how far from it we are."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from src.config import RunConfig
from tests.bench import ours
from tests.bench.breakdown import Groups, profiled
from tests.bench.notes import CHOSEN, PROMPT, SIZES
from tests.bench.page import Section
from tests.bench.timing import Samples, Spread, by_turns
from tests.bench.toy import with_threads

PROSE = """\
Counted from the architecture, for one update of one run. FLOPs: twice the multiply-adds of the weight and attention
products, times three for forward, gradient of the input and gradient of the weight. The least that must be computed
is one row that shares the prompt, without the two last tokens (nothing is predicted from them): {columns}
positions; and in the last layer, behind keys and values, only the {heads} positions whose logits are needed. Bytes:
with torch.optim as a pass of its own, every weight is read in the forward and in the backward pass, its gradient
written, then gradient and weight read and the weight written: 6 x 4 bytes x {parameters:,} weights for SGD; Adam
and AdamW read and write two averages besides, 10 x 4. Activations stay in cache and are not counted; nor is the
pass over the gradient for its norm.

The machine: a product of two {square} x {square} float32 matrices; all products of one step of a stack of 8, with
`torch.bmm` in the shapes in use; and a triad a = b + s c (3 x 4 bytes an element) over arrays of {large} MB each,
and of {small} MB each. The weights and gradients of 8 runs are {stack_megabytes:.0f} MB.

The floor is the larger of FLOPs / GEMM rate and bytes / cache bandwidth, as if the two overlapped perfectly: what a
run whose weights stay in cache could reach. Beside it the same with memory bandwidth, for a stack that is larger than
the cache. The distance is the time we take over the floor."""

GAP = """

What the gap is made of: self times of torch.profiler over {steps} steps of a stack of 8, one thread; profiling
itself made these steps {slower:.2f} times as long. "Recording" is metrics and the recorder; files and W&B are under
Logging. "Python, and what is between operations" is the time in which no tensor operation ran."""

RUNS, STEPS = 8, 100
SQUARE, LARGE, SMALL = 2048, 256, 4  # rows; megabytes of one array
REPEATS = 5
LEVELS = {"small": "from cache", "large": "from memory"}  # of a triad's arrays


@dataclass(frozen=True)
class Work:
    """Of one update of one run."""

    flops: float
    bytes: float


def shapes(columns: int, needed: int) -> list[tuple[int, int, int]]:
    """(rows, in, out) of the forward products with weights, query and key and value in one, gate and up in one."""
    d, i = SIZES["hidden_size"], SIZES["intermediate_size"]
    found = []
    for layer in range(SIZES["num_hidden_layers"]):
        m = needed if layer == SIZES["num_hidden_layers"] - 1 else columns
        found += [(columns, d, 3 * d), (m, d, d), (m, d, 2 * i), (m, i, d)]
    return [*found, (needed, d, SIZES["vocab_size"])]


def parameters() -> int:
    d, i, v = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["vocab_size"]
    return SIZES["num_hidden_layers"] * (4 * d * d + 3 * d * i + 2 * d) + 2 * v * d + d


def least(optimizer: str) -> Work:
    """The shared row, pruned as PROSE says."""
    columns, needed = positions()
    d = SIZES["hidden_size"]
    weights = sum(prod(shape) for shape in shapes(columns, needed)) - (columns - needed) * d * d  # last layer's queries
    scores = [columns] * (SIZES["num_hidden_layers"] - 1) + [needed]
    attention = sum(2 * rows * columns * d for rows in scores)
    passes = 6 if optimizer == "sgd" else 10
    return Work(3 * 2 * (weights + attention), passes * 4 * parameters())


def of_the_notes() -> Work:
    """Two rows of the policy forward and backward, two of the reference forward; all positions and logits."""
    row = len(PROMPT) + len(CHOSEN)
    one = sum(prod(shape) for shape in shapes(row, row))
    one += SIZES["num_hidden_layers"] * 2 * row * row * SIZES["hidden_size"]
    return Work(2 * one * (2 * 3 + 2), 2 * (2 + 2 + 1) * 4 * parameters())


def positions() -> tuple[int, int]:
    """Input positions of the shared row, and those whose logits are needed: the prompt's last counts once."""
    response = len(CHOSEN) - 1
    return len(PROMPT) + 2 * response, 1 + 2 * response


# ---- the machine


def gemm() -> float:
    """FLOP/s of a large square product."""
    a, b, c = (torch.rand(SQUARE, SQUARE) for _ in range(3))
    return 2 * SQUARE**3 / _best_seconds(lambda: torch.mm(a, b, out=c))


def products() -> float:
    """FLOP/s of all weight products of a step, forward and backward, in the shapes in use."""
    flops, calls = 0, []
    for m, k, n in shapes(*positions()):
        x, w, y = torch.rand(RUNS, m, k), torch.rand(RUNS, k, n), torch.rand(RUNS, m, n)
        dx, dw = torch.rand(RUNS, m, k), torch.rand(RUNS, k, n)
        flops += 3 * 2 * RUNS * m * k * n
        calls += [(x, w, y), (y, w.mT, dx), (x.mT, y, dw)]

    def step() -> None:
        for a, b, out in calls:
            torch.bmm(a, b, out=out)

    return flops / _best_seconds(step)


def triad(megabytes: int) -> float:
    """Bytes/s of a = b + s c; the write's fetch of the line it overwrites is not counted."""
    a, b, c = (torch.ones(megabytes * 2**20 // 4) for _ in range(3))
    repeats = max(1, 64 // megabytes)

    def pass_over() -> None:
        for _ in range(repeats):
            torch.add(b, c, alpha=3.0, out=a)

    return 3 * 4 * a.numel() * repeats / _best_seconds(pass_over)


def _best_seconds(work: Callable[[], object]) -> float:
    """Of a few, after one that is not counted: a floor is what the machine can do, not what it does on average."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


# ---- the part


def measure(rounds: int, known: dict[str, float]) -> Section:
    contenders: dict[str, Callable[[], float]] = {}
    for n in (1, 2):
        contenders[f"gemm {n}"] = with_threads(n, gemm)
        contenders[f"large {n}"] = with_threads(n, triad, LARGE)
        contenders[f"small {n}"] = with_threads(n, triad, SMALL)
    contenders["products 1"] = with_threads(1, products)
    for optimizer in ("sgd", "adamw"):
        contenders[f"stack {optimizer}"] = with_threads(1, ours.run_steps_per_second, RUNS, optimizer, STEPS)
    samples = by_turns(contenders, rounds)

    rates = [["the machine", "one thread", "two threads"]]
    for name, title, unit, scale in (
        ("gemm", f"product {SQUARE} x {SQUARE}", "GFLOP/s", 1e9),
        ("products", "products of a step, stack of 8", "GFLOP/s", 1e9),
        ("large", f"triad, {LARGE} MB arrays (memory)", "GB/s", 1e9),
        ("small", f"triad, {SMALL} MB arrays (cache)", "GB/s", 1e9),
    ):
        found = [samples.get(f"{name} {n}") for n in (1, 2)]
        rates.append([title, *(f"{Spread.of([v / scale for v in s]):.0f} {unit}" if s else "" for s in found)])

    table = [*rates, ["**a run-step**", "**MFLOP**", "**MB**"]]
    for title, work in (
        ("least, SGD", least("sgd")),
        ("least, AdamW", least("adamw")),
        ("the notes' loop, SGD", of_the_notes()),
    ):
        table.append([title, f"{work.flops / 1e6:.0f}", f"{work.bytes / 1e6:.0f}"])

    table.append(["**microseconds a run-step**", "**SGD**", "**AdamW**"])
    floors = {
        (n, level): {o: _floor(samples, o, n, level) for o in ("sgd", "adamw")} for n in (1, 2) for level in LEVELS
    }
    taken = {o: [1e6 / rate for rate in samples[f"stack {o}"]] for o in ("sgd", "adamw")}

    def row(title: str, values: Callable[[str], Sequence[float]], places: int = 0) -> None:
        table.append([title, *(f"{Spread.of(values(o)):.{places}f}" for o in ("sgd", "adamw"))])

    row("arithmetic alone, one thread", lambda o: [1e6 * least(o).flops / rate for rate in samples["gemm 1"]])
    for level, title in LEVELS.items():
        row(f"weights {title} alone, one thread", lambda o, level=level: _traffic(samples, o, 1, level))
    row("floor, one thread", floors[1, "small"].__getitem__)
    row("the same, weights from memory", floors[1, "large"].__getitem__)
    row("a stack of 8, one thread", taken.__getitem__)
    row("distance from the floor", lambda o: _over(taken[o], floors[1, "small"][o]), 1)
    row("the same, weights from memory", lambda o: _over(taken[o], floors[1, "large"][o]), 1)
    row("floor, both cores", floors[2, "small"].__getitem__)
    row("the same, weights from memory", floors[2, "large"].__getitem__)
    if "launcher sgd" in known:
        micros = 1e6 / known["launcher sgd"]
        table.append(["48 runs, both cores (median)", f"{micros:.0f}", ""])
        for level, title in LEVELS.items():
            distance = micros / Spread.of(floors[2, level]["sgd"]).median
            table.append([f"its distance from the floor, weights {title}", f"{distance:.1f}", ""])

    groups = profiled(_runs())
    table.append(["**the step of a stack of 8, SGD**", "**microseconds a run-step**", "**share**"])
    total = sum(groups.microseconds.values())
    for name, micros in groups.microseconds.items():
        table.append([name, f"{micros:.0f}", f"{100 * micros / total:.0f} %"])
    return Section("The floor", _prose(groups, Spread.of(taken["sgd"]).median), table)


def _runs() -> list[RunConfig]:
    return ours.toy_runs(RUNS, ours.WARM_UP + STEPS)


def _floor(samples: Samples, optimizer: str, threads: int, level: str) -> list[float]:
    """Microseconds a run-step, round by round."""
    arithmetic = [1e6 * least(optimizer).flops / rate for rate in samples[f"gemm {threads}"]]
    return [max(parts) for parts in zip(arithmetic, _traffic(samples, optimizer, threads, level), strict=True)]


def _traffic(samples: Samples, optimizer: str, threads: int, level: str) -> list[float]:
    """Microseconds a run-step for reading and writing weights, from cache or from memory."""
    return [1e6 * least(optimizer).bytes / rate for rate in samples[f"{level} {threads}"]]


def _over(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _prose(groups: Groups, taken: float) -> str:
    columns, needed = positions()
    stack = RUNS * 2 * 4 * parameters() / 1e6
    return PROSE.format(
        columns=columns, heads=needed, parameters=parameters(), square=SQUARE, large=LARGE, small=SMALL,
        stack_megabytes=stack,
    ) + GAP.format(steps=groups.steps, slower=sum(groups.microseconds.values()) / taken)  # fmt: skip
