"""Where a sweep is computed."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from src.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Compute:
    device: Literal["cpu", "cuda"]
    threads: Annotated[int, Ge(1)] | None
    stack_size: Annotated[int, Ge(1)] | None

    def prepare(self) -> torch.device:
        """Give the device.

        Raises:
            BadInput: CUDA asked for and not there.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("compute=cuda: torch sees no CUDA device here; use compute=cpu")
        return torch.device(self.device)

    def use_threads(self, suits_model: int | None) -> None:
        """Apply `threads`, by default what suits the model (None: one thread a core)."""
        torch.set_num_threads(self.threads or suits_model or len(os.sched_getaffinity(0)))
