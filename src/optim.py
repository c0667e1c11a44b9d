"""torch.optim over a stack: one optimizer for each stretch of runs that share its settings."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from src.config import RunConfig
from src.policy.base import Policy


class StackOptimizer:
    """Steps R runs, each with its own optimizer, learning rate and schedule.

    torch's optimizers here are elementwise, so neighbouring runs with equal settings are one tensor to them. The
    launcher sorts a stack so that such runs are neighbours; any order is correct.
    """

    def __init__(self, policy: Policy, runs: Sequence[RunConfig]) -> None:
        self._parameters = list(policy.parameters())
        self._runs = runs
        self._stretches: list[_Stretch] = []
        settings = [(run.optimizer.plain(), run.scheduler.plain(), run.steps) for run in runs]
        for _, members in groupby(range(len(runs)), key=lambda r: settings[r]):
            rows = list(members)
            self._stretches.append(_Stretch(self._parameters, rows[0], rows[-1] + 1, len(runs), runs[rows[0]]))
        self.lrs = torch.zeros(len(runs), dtype=torch.float64)

    def zero_grad(self) -> None:
        for p in self._parameters:
            p.grad = None

    def schedule(self, step: int) -> None:
        """Set every run's learning rate for update `step`; `lrs` [R] then holds them."""
        for stretch in self._stretches:
            self.lrs[stretch.start : stretch.stop] = stretch.schedule(step)

    def step(self) -> None:
        for stretch in self._stretches:
            stretch.step()

    def grad_norms(self) -> Tensor:
        """L2 norm of each run's gradient, [R]."""
        norms_of_each = [
            torch.linalg.vector_norm(
                p.grad.reshape(len(self._runs), -1), dim=1, dtype=torch.promote_types(p.dtype, torch.float32)
            )
            for p in self._parameters
            if p.grad is not None
        ]
        norms: Tensor = torch.linalg.vector_norm(torch.stack(norms_of_each), dim=0)
        return norms

    def clip(self, norms: Tensor) -> None:
        """Scale each run's gradient to its own max_grad_norm. A run without one is multiplied by exactly 1."""
        if all(run.max_grad_norm is None for run in self._runs):
            return
        limits = torch.tensor([run.max_grad_norm or float("inf") for run in self._runs]).to(norms)
        scale = (limits / (norms + 1e-6)).clamp(max=1.0)
        for p in self._parameters:
            if p.grad is not None:
                p.grad.view(len(self._runs), -1).mul_(scale[:, None].to(p.grad.dtype))


class _Stretch:
    """Runs start..stop-1 as torch.optim sees them."""

    def __init__(self, parameters: list[Tensor], start: int, stop: int, runs: int, config: RunConfig) -> None:
        self.start, self.stop, self._config, self._sources = start, stop, config, parameters
        # A slice of the stack is a second leaf over the same memory; autograd only ever sees the first.
        self._whole = stop - start == runs
        self._leaves = parameters if self._whole else [nn.Parameter(p.detach()[start:stop]) for p in parameters]
        self._optimizer: torch.optim.Optimizer = config.optimizer.build(self._leaves)

    def schedule(self, step: int) -> float:
        lr = float(self._config.lr * self._config.scheduler.build(step, self._config.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return lr

    def step(self) -> None:
        if not self._whole:
            for leaf, source in zip(self._leaves, self._sources, strict=True):
                leaf.grad = None if source.grad is None else source.grad[self.start : self.stop]
        self._optimizer.step()
