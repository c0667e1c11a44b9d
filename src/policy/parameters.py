"""Weights of R runs in front of one another."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ParameterStack(dict[str, nn.Parameter]):
    """Named parameters, each [R, ...]: run r's weights are the r-th slice."""

    @classmethod
    def of(cls, runs: list[Mapping[str, Tensor]], device: torch.device, dtype: torch.dtype) -> "ParameterStack":
        stacked = cls()
        for name in runs[0]:
            stacked[name] = nn.Parameter(torch.stack([run[name] for run in runs]).to(device=device, dtype=dtype))
        return stacked

    def of_run(self, run: int) -> dict[str, Tensor]:
        return {name: p.detach()[run].cpu() for name, p in self.items()}
