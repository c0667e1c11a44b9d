"""Weights of R runs in front of one another."""

import math
from collections.abc import ItemsView, Mapping

import torch
from torch import Tensor, nn

ALIGNED = 16  # elements a weight's place is rounded up to: whole vector registers, so that no weight has a ragged end


class ParameterStack:
    """Named weights of R runs in one parameter [R, N]: run r's are row r, each weight in a column range of its own.

    One tensor makes an optimizer's update, a gradient's norm and its clipping one pass over memory each. `stack[name]`
    is a view [R, ...] of it that autograd does not follow: whoever computes with these weights gives their gradient,
    into the memory of `gradient`.

    runs: each run's weights by name. multiple: N is rounded up to a multiple of it.
    """

    def __init__(
        self, runs: list[Mapping[str, Tensor]], device: torch.device, dtype: torch.dtype, multiple: int = ALIGNED
    ) -> None:
        self.runs = len(runs)
        self._places: dict[str, tuple[int, torch.Size]] = {}
        width = 0
        for name, weight in runs[0].items():
            self._places[name] = (width, weight.shape)
            width += -(-weight.numel() // ALIGNED) * ALIGNED
        multiple = math.lcm(multiple, ALIGNED)
        flat = torch.zeros(self.runs, -(-width // multiple) * multiple, device=device, dtype=dtype)
        self._views = self._named(flat)
        for name, view in self._views.items():
            view.copy_(torch.stack([run[name] for run in runs]))
        self.parameter = nn.Parameter(flat)
        self._kept: tuple[Tensor, dict[str, Tensor]] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def items(self) -> ItemsView[str, Tensor]:
        return self._views.items()

    def gradient(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Memory for a gradient of `parameter`, and each weight's part of it, to be overwritten; padding holds zeros.

        The same memory every time, unless a gradient stands there already, which autograd will add this one to. Fresh
        memory would cost a page fault for every 4 kB of it, in every step.
        """
        if self.parameter.grad is not None:
            return self._fresh()
        if self._kept is None:
            self._kept = self._fresh()
        flat, named = self._kept
        return flat.detach(), named  # another tensor over the same memory, which autograd may take without a copy

    def of_run(self, run: int) -> dict[str, Tensor]:
        return {name: view[run].cpu() for name, view in self._views.items()}

    def _fresh(self) -> tuple[Tensor, dict[str, Tensor]]:
        flat = torch.zeros_like(self.parameter, requires_grad=False)
        return flat, self._named(flat)

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        return {
            name: flat[:, start : start + shape.numel()].view(self.runs, *shape)
            for name, (start, shape) in self._places.items()
        }
