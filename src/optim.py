"""torch.optim over a stack: one optimizer for each stretch of runs that share its settings."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from src.config import RunConfig
from src.policy.base import Policy

SCALER = ("scale", "_growth_tracker")  # what a gradient scaler remembers
LARGE = 2**20  # bytes of one run's weights from which an update that is not fused takes run after run, to stay in cache


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
        # Stacks of such runs are of one: an update that is left out is left out for all that share the scaler.
        self._scaler = torch.amp.GradScaler(self._parameters[0].device.type, enabled=runs[0].autocast == "float16")

    def zero_grad(self) -> None:
        for p in self._parameters:
            p.grad = None

    def schedule(self, step: int) -> None:
        """Set every run's learning rate for update `step`; `lrs` [R] then holds them."""
        for stretch in self._stretches:
            self.lrs[stretch.start : stretch.stop] = stretch.schedule(step)

    def backward(self, loss: Tensor) -> None:
        """The gradient of `loss`. In half precision that of a multiple of it, so that small ones are not lost."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self) -> None:
        """Give the gradient its true size."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._stretches[0].optimizer)

    def overflowed(self, norms: Tensor) -> bool:
        """Is the gradient infinite only because the multiple was too large? `step` then halves it and does no more."""
        return self._scaler.is_enabled() and not bool(norms.isfinite().all()) and self._scaler.get_scale() >= 1

    def step(self) -> None:
        for stretch in self._stretches:
            stretch.step(self._scaler)
        self._scaler.update()

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

    def state(self) -> dict[str, Tensor]:
        """What torch.optim and the gradient scaler remember between updates, by name."""
        state = {f"{i}.{name}": value for i, stretch in enumerate(self._stretches) for name, value in stretch.state()}
        if self._scaler.is_enabled():
            kept = self._scaler.state_dict()
            state["scaler"] = torch.tensor([kept[name] for name in SCALER], dtype=torch.float64)
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` of an optimizer for the same runs gave."""
        if "scaler" in state:
            scale, steps = state["scaler"].tolist()
            kept = dict(zip(SCALER, (scale, int(steps)), strict=True))
            self._scaler.load_state_dict({**self._scaler.state_dict(), **kept})
        for i, stretch in enumerate(self._stretches):
            prefix = f"{i}."
            stretch.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


class _Stretch:
    """Runs start..stop-1 as torch.optim sees them."""

    def __init__(self, parameters: list[Tensor], start: int, stop: int, runs: int, config: RunConfig) -> None:
        self.start, self.stop, self._config, self._sources = start, stop, config, parameters
        # torch's fused updates read and write each number once, where the others make a pass for each operation.
        optimizer, given = config.optimizer, config.optimizer.params
        fused = optimizer.needs("fused") and given.get("fused") is None and not given.get("foreach")
        if fused:
            optimizer = replace(optimizer, params={**given, "fused": True})
        self._runs_a_leaf = stop - start if fused or parameters[0][0].nbytes < LARGE else 1
        # A slice of the stack is a second leaf over the same memory; autograd only ever sees the first.
        self._whole = self._runs_a_leaf == runs
        self._leaves = parameters if self._whole else [nn.Parameter(x) for p in parameters for x in self._slices(p)]
        self.optimizer: torch.optim.Optimizer = optimizer.build(self._leaves)
        self._factor = partial(config.scheduler.function, **config.scheduler.params)

    def _slices(self, of_all_runs: Tensor) -> tuple[Tensor, ...]:
        return torch.split(of_all_runs.detach()[self.start : self.stop], self._runs_a_leaf)

    def schedule(self, step: int) -> float:
        lr = float(self._config.lr * self._factor(step, self._config.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def step(self, scaler: torch.amp.GradScaler) -> None:
        if not self._whole:
            slices = (part for p in self._sources if p.grad is not None for part in self._slices(p.grad))
            for leaf, grad in zip(self._leaves, slices, strict=True):
                leaf.grad = grad
        scaler.step(self.optimizer)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        for j, leaf in enumerate(self._leaves):
            for name, value in self.optimizer.state[leaf].items():
                if isinstance(value, Tensor):
                    yield f"{j}.{name}", value

    def load(self, state: Mapping[str, Tensor]) -> None:
        by_leaf: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, value in state.items():
            j, _, name = key.partition(".")
            by_leaf[int(j)][name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": dict(by_leaf)})
