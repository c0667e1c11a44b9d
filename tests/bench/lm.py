"""A real language model on real pairs against TRL's DPOTrainer: `python -m tests.bench.lm` (about half an hour).

Puts its section into docs/benchmarks.md and leaves the rest of the page. `--gpu` measures on a GPU, in bfloat16, and
writes docs/benchmarks-gpu-lm.md.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from src.data.pairs import PairData
from tests.bench.commands import REPO, NotMeasured, scratch_folder, timed
from tests.bench.page import PAGE, Section, Target, machine, put_lm, table, versions
from tests.bench.timing import Spread, ratios
from tests.trl_lm import REAL_PAIRS, Trained, ours, overrides, trl

PAIRS, BATCH, LR, MAX_LENGTH = 64, 4, 1e-5, 512
STACK_PAIRS = 20  # of the runs with adapters, which are slower the more there are
SQUARE = 2048
GPU_PAGE = REPO / "docs" / "benchmarks-gpu-lm.md"

PROSE = """\
Written by `{command}`; {rounds} round(s). Machine: {machine}. Load when it began: {load}. {versions}.

SmolLM2-135M-Instruct, {dtype}, {pairs} pairs of real dialogues (`data=hh_rlhf`) in the order of the file, at most
{max_length} tokens a row, {batch} pairs a batch, AdamW at {lr:g} without decay or clipping, beta 0.1: {updates}
updates. TRL's DPOTrainer gets the same token ids; both have the reference's log-probs computed beforehand and no
gradient checkpointing. Pairs a second are of all updates but the first. Each side is a process of its own, by turns,
because peak memory (resident set) is a process's. The largest difference between the two sides' losses, over all
updates: {apart:.1e}.

The floor is arithmetic alone: twice the multiply-adds of all weights for each token that must be computed (a prompt
once for both its responses, no response's last token), of the output layer for each response token, and of attention
for every column that may be read; times three for forward and backward; over the rate of a product of two
{square} x {square} matrices in the same process. A batch takes {gflop:.0f} GFLOP.

Adapters: LoRA with r = 32 on the seven projections, R runs that differ in beta and seed over one model
(`adapter=lora`), {stack_pairs} pairs each; once. One model is in memory, but activations are each run's own."""


@dataclass(frozen=True)
class Side:
    """One process: seconds of each update but the first, peak memory in GB, and what it logged.

    rate: GFLOP/s of a large product. floor: GFLOP an update at least takes, of the mean batch.
    """

    seconds: list[float]
    peak: float
    loss: list[float]
    rate: float
    floor: float

    @property
    def pairs_per_second(self) -> float:
        return BATCH * len(self.seconds) / sum(self.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--side", help="(one process of the measurement)")
    options = parser.parse_args()
    device = "cuda" if options.gpu else "cpu"
    if options.gpu and not torch.cuda.is_available():
        sys.exit("bench-lm-gpu: torch sees no CUDA device here; nothing was measured")
    if options.side:
        print(json.dumps(asdict(_side(options.side, device))))
        return
    load = f"{os.getloadavg()[0]:.1f}"
    section = measure(options.rounds, device, load)
    text = "\n\n".join(
        [section.prose, table([["target", "wanted", "measured", "met"], *(t.row() for t in section.targets)])]
    )
    text = f"## {section.title}\n\n{text}\n\n{table(section.table)}\n"
    if options.gpu:
        GPU_PAGE.write_text(f"#{text[2:]}")
    else:
        PAGE.write_text(put_lm(PAGE.read_text(), text))


def measure(rounds: int, device: str, load: str) -> Section:
    sides: dict[str, list[Side]] = {"ours": [], "trl": []}
    for k in range(rounds):
        for name in list(sides)[:: 1 if k % 2 == 0 else -1]:
            sides[name].append(_in_a_process(name, device))
    stacks = {runs: _in_a_process(f"lora {runs}", device) for runs in (1, 4, 8)}
    mine, theirs = sides["ours"], sides["trl"]
    apart = max(
        abs(a - b) for one, other in zip(mine, theirs, strict=True) for a, b in zip(one.loss, other.loss, strict=True)
    )
    if apart > (1e-3 if device == "cpu" else 5e-2):
        raise NotMeasured(f"the two sides' losses differ by {apart:.2g}: they did not do the same work")
    rates = {name: [side.pairs_per_second for side in of] for name, of in sides.items()}
    peaks = {name: [side.peak for side in of] for name, of in sides.items()}
    share = Spread.of([BATCH * side.rate / side.floor for side in mine])  # pairs a second at the floor
    rows = [
        ["", "pairs a second", "peak memory"],
        ["this project", f"{Spread.of(rates['ours']):.2f}", f"{Spread.of(peaks['ours']):.2f} GB"],
        ["TRL", f"{Spread.of(rates['trl']):.3f}", f"{Spread.of(peaks['trl']):.2f} GB"],
        ["the floor", f"{share:.2f}", ""],
        ["share of the floor that is reached", f"{_percent(mine)}", ""],
    ]
    for runs, side in stacks.items():
        each = f"{side.pairs_per_second * runs:.2f} of all runs, {side.pairs_per_second:.2f} of each"
        rows.append([f"LoRA, {runs} run{'s' if runs > 1 else ''} at once", each, f"{side.peak:.2f} GB"])
    prose = PROSE.format(
        command=" ".join(["python -m tests.bench.lm", *sys.argv[1:]]), rounds=rounds, machine=machine(), load=load,
        versions=versions(), dtype="float32" if device == "cpu" else "bfloat16 products over float32 weights",
        pairs=PAIRS, batch=BATCH, lr=LR, max_length=MAX_LENGTH, updates=PAIRS // BATCH, apart=apart, square=SQUARE,
        gflop=statistics.mean(side.floor for side in mine), stack_pairs=STACK_PAIRS,
    )  # fmt: skip
    targets = [
        Target("pairs a second, against TRL", 3.5, ratios(rates["ours"], rates["trl"]), aim=4.5),
        Target("peak memory, of TRL's", 0.5, ratios(peaks["ours"], peaks["trl"]), aim=0.35, at_most=True),
    ]
    return Section("A real language model: SmolLM2-135M, TRL", prose, rows, targets if device == "cpu" else [])


def _percent(sides: list[Side]) -> str:
    return f"{Spread.of([100 * s.pairs_per_second * s.floor / BATCH / s.rate for s in sides]):.0f} %"


def _in_a_process(name: str, device: str) -> Side:
    with scratch_folder() as folder:
        arguments = ["-m", "tests.bench.lm", "--side", name, *(["--gpu"] if device == "cuda" else [])]
        _, done = timed(arguments, folder)
    side = Side(**json.loads(done.stdout.splitlines()[-1]))
    print(f"  {name}: {side.pairs_per_second:.3g} pairs/s, {side.peak:.2f} GB, {side.rate:.0f} GFLOP/s", flush=True)
    return side


def _side(name: str, device: str) -> Side:
    kind, _, number = name.partition(" ")
    runs = int(number or 1)
    on_gpu = device == "cuda"
    pairs = STACK_PAIRS if kind == "lora" else PAIRS
    rate = _gemm_rate(device)
    given = [*overrides(pairs, BATCH, LR, MAX_LENGTH), f"compute={device}"]
    given += ["autocast=bfloat16"] if on_gpu else []
    if kind == "trl":
        data, model, tokenizer = _model_and_data(pairs)
        settings: dict[str, Any] = {"bf16": True, "padding_free": True} if on_gpu else {}
        trained = trl(model.to(device), tokenizer, data, BATCH, LR, **settings)
    else:
        trained = _ours(given, runs if kind == "lora" else 0)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    data, model, _ = _model_and_data(pairs)  # again, where it was trained: its shapes are wanted
    seconds = [b - a for a, b in zip(trained.ended, trained.ended[1:], strict=False)]
    return Side(seconds, peak / 1e9, [row["loss"] for row in trained.logged], rate, _floor(model, data))


def _ours(given: list[str], adapters: int) -> Trained:
    if not adapters:
        return ours(given)
    lora = [*given, "adapter=lora", f"compute.stack_size={adapters}"]
    return ours(*([*lora, f"beta={0.1 * (1 + r)}", f"seed={r}"] for r in range(adapters)))


def _model_and_data(pairs: int) -> tuple[PairData, Any, Any]:
    from src.data.text import hh_rlhf
    from src.policy.pretrained import _load_model, smollm2

    spec = smollm2("package")
    data = hh_rlhf(path=str(REAL_PAIRS), limit=pairs, max_length=MAX_LENGTH, tokenizer=spec.tokenizer())
    model = _load_model(spec, torch.float32)
    _load_model.cache_clear()
    return data, model, spec.tokenizer()


def _gemm_rate(device: str) -> float:
    """GFLOP/s of a large product, the best of a few."""
    x = torch.randn(SQUARE, SQUARE, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        y = x @ x
        float(y[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2e-9 * SQUARE**3 / best


def _floor(model: Any, data: PairData) -> float:
    """GFLOP of an update of the mean batch."""
    config, head = model.config, model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    total = 0.0
    for prompt, responses in zip(data.prompts, data.responses, strict=True):
        p, seen = len(prompt), [len(ids) - 1 for ids in responses]
        readable = p * (p + 1) / 2 + sum(n * p + n * (n + 1) / 2 for n in seen)
        attention = 2 * config.num_hidden_layers * config.hidden_size * readable
        total += linear * (p + sum(seen)) + head.weight.numel() * sum(map(len, responses)) + attention
    return 2 * 3 * total / len(data) * BATCH / 1e9


if __name__ == "__main__":
    main()
