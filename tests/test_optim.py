"""A stack's optimizer does to each run what torch.optim does to that run alone."""

import pytest
import torch

from src import optim
from tests.stacks import configs

OPTIMIZERS = [
    "optimizer=sgd lr=0.1",
    "optimizer=sgd optimizer.momentum=0.9 optimizer.weight_decay=0.1 lr=0.1",
    "optimizer=adam lr=0.01",
    "optimizer=adamw optimizer.weight_decay=0.1 lr=0.02",
    "optimizer=rmsprop optimizer.momentum=0.5 lr=0.003",
]


class Numbers:
    """A policy in as far as an optimizer is concerned."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.nn.Parameter(torch.randn(runs, 37, generator=generator, dtype=torch.float64))

    def parameters(self):
        return [self.weights]


def gradients(steps: int, runs: int):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, runs, 37, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("large", [0, 2**20], ids=["run after run", "all runs at once"])
def test_every_run_gets_torchs_own_updates(monkeypatch, large):
    monkeypatch.setattr(optim, "LARGE", large)
    runs = configs(*(f"{kind} scheduler=linear scheduler.warmup_steps=2 steps=6 tracking=none model=tabular"
                     for kind in OPTIMIZERS for _ in range(2)))  # fmt: skip
    policy = Numbers(len(runs))
    alone = [torch.nn.Parameter(row.clone()) for row in policy.weights.detach()]
    plain = []
    for run, leaf in zip(runs, alone, strict=True):
        settings = {k: v for k, v in run.optimizer.params.items() if k not in ("fused", "foreach")}
        plain.append(run.optimizer.function([leaf], **settings, foreach=False))
    stacked = optim.StackOptimizer(policy, runs)
    for step, slope in enumerate(gradients(6, len(runs))):
        policy.weights.grad = slope.clone()
        stacked.schedule(step)
        stacked.step()
        for r, (leaf, optimizer) in enumerate(zip(alone, plain, strict=True)):
            leaf.grad = slope[r].clone()
            optimizer.param_groups[0]["lr"] = float(stacked.lrs[r])
            optimizer.step()
        torch.testing.assert_close(policy.weights.detach(), torch.stack(alone).detach(), rtol=1e-12, atol=1e-12)


def test_norms_and_clipping_are_each_runs_own():
    runs = configs("max_grad_norm=0.5 tracking=none model=tabular", "tracking=none model=tabular")
    policy = Numbers(2)
    (slope,) = gradients(1, 2)
    policy.weights.grad = slope.clone()
    stacked = optim.StackOptimizer(policy, runs)
    norms = stacked.grad_norms()
    torch.testing.assert_close(norms, slope.norm(dim=1), rtol=1e-14, atol=0)
    stacked.clip(norms)
    assert float(policy.weights.grad[0].norm()) == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(policy.weights.grad[1], slope[1])
