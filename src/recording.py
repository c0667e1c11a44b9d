"""Collects a stack's metrics step by step and hands them on, run by run, in columns."""

import time
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

Emit = Callable[[int, Mapping[str, np.ndarray]], None]

FLUSH_ROWS = 200
FLUSH_SECONDS = 1.0  # at most so much is lost to kill -9


class Recorder:
    """Buffers rows of [R] tensors and calls `emit(run, columns)` for every run that is still going."""

    def __init__(self, runs: int, emit: Emit) -> None:
        self._emit = emit
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._first_step = 0
        self._end = [np.inf] * runs  # rows of steps >= end are not this run's any more
        self._flushed = time.monotonic()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        self._names = list(metrics)
        self._rows.append(torch.stack([values.to("cpu", torch.float64) for values in metrics.values()]))

    def close_run(self, run: int, steps_done: int) -> None:
        """Keep only `steps_done` rows of a run that has stopped."""
        self._end[run] = steps_done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.flush()

    @property
    def due(self) -> bool:
        return len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS

    def flush(self) -> None:
        if self._rows:
            block = torch.stack(self._rows).numpy()  # [S, M, R]
            finite = np.isfinite(block)
            for run, end in enumerate(self._end):
                rows = int(min(len(block), end - self._first_step))
                if rows > 0:
                    steps = np.arange(self._first_step, self._first_step + rows)
                    values = {name: np.ascontiguousarray(block[:rows, m, run]) for m, name in enumerate(self._names)}
                    nonfinite = (~finite[:rows, :, run]).sum(1)
                    self._emit(run, {"step": steps, **values, "nonfinite": nonfinite})
            self._first_step += len(block)
            self._rows.clear()
        self._flushed = time.monotonic()
