"""Stacks of toy runs: in this process through `train_stack`, and what to say on the command line for them."""

import time

import torch
from torch import Tensor

from src.config import RunConfig
from src.launching.loading import load_data
from src.recording import Emit
from src.train import train_stack
from tests.bench.notes import LR, WARM_UP
from tests.stacks import configs

TOY_48 = ("loss=dpo,ipo,hinge,cdpo", "beta=0.1,0.5", f"lr={LR},2e-5", "seed=0,1,2")
TOY_24 = ("loss=dpo,ipo", "beta=0.1,0.5", "seed=0,1,2,3,4,5")

LOSSES, BETAS = ("dpo", "ipo", "hinge", "cdpo"), (0.1, 0.5, 0.2, 0.3)


def toy_runs(runs: int, steps: int, optimizer: str = "sgd", extra: str = "") -> list[RunConfig]:
    """Losses, betas and seeds mixed; for up to 16 runs no two are the same."""
    return configs(
        *(
            f"loss={LOSSES[r % 4]} beta={BETAS[r // 4 % 4]} seed={r % 3} lr={LR} optimizer={optimizer} steps={steps} "
            f"tracking=none {extra}"
            for r in range(runs)
        )
    )


def nothing(run: int, columns: object) -> None:
    """An `emit` that keeps nothing."""


class Watch:
    """When training has warmed up."""

    def __init__(self) -> None:
        self.warm = 0.0

    def __call__(self, step: int, margins: Tensor) -> None:
        if step == WARM_UP - 1:
            self.warm = time.perf_counter()


def seconds_of(runs: list[RunConfig], emit: Emit = nothing, device: str = "cpu") -> float:
    """Of the steps after warm-up, in which every row is computed and handed to `emit`."""
    watch = Watch()
    outcomes, _ = train_stack(runs, load_data(runs), emit, torch.device(device), watch)
    seconds = time.perf_counter() - watch.warm
    assert all(outcome.state == "finished" for outcome in outcomes), outcomes
    return seconds


def run_steps_per_second(runs: int, optimizer: str, steps: int, device: str = "cpu") -> float:
    return runs * steps / seconds_of(toy_runs(runs, WARM_UP + steps, optimizer), device=device)
