"""Collects what a stack's steps gave and hands the metrics on, run by run, in columns."""

import time
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

Emit = Callable[[int, Mapping[str, np.ndarray]], None]
Measure = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

FLUSH_ROWS = 200
FLUSH_SECONDS = 1.0  # at most so much is lost to kill -9
BLOCK_BYTES = 2**24  # of raw values that wait to be measured, unless one step's are more


def as_given(block: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return block


class Recorder:
    """Buffers steps and calls `emit(run, columns)` for every run that is still going.

    Metrics are pure functions of a few raw tensors, in some forty small operations. Step by step these cost more than a
    table's training, so they are done for a block of steps at once. A step has its own place in the block, by its
    number, and always the whole block is measured: vectorised functions may differ in the last bit with the place of an
    element, and when a flush falls due is a matter of time.

    Args:
        measure: turns raw values [S, R, ...] of S steps into metrics [S, R]. Default: they are metrics already.
        first_step: the number of the first step that will be added.
    """

    def __init__(self, runs: int, emit: Emit, first_step: int = 0, measure: Measure = as_given) -> None:
        self._emit, self._measure = emit, measure
        self._block: dict[str, Tensor] = {}
        self._rows = 1
        self._step = self._measured_to = first_step
        self._measured: list[tuple[tuple[str, ...], np.ndarray]] = []  # names, and values [S, M, R]
        self._first_step = first_step
        self._end = [np.inf] * runs  # rows of steps >= end are not this run's any more
        self._flushed = time.monotonic()

    def add(self, raw: Mapping[str, Tensor]) -> None:
        """One step's raw values, each [R, ...]; they are copied. Shapes may change from step to step."""
        if any(name not in self._block or self._block[name].shape[1:] != x.shape for name, x in raw.items()):
            self._measure_pending()
            row_bytes = sum(x.nbytes for x in raw.values())
            self._rows = max(1, min(FLUSH_ROWS, BLOCK_BYTES // row_bytes))
            self._block = {name: x.new_zeros(self._rows, *x.shape) for name, x in raw.items()}
        place = self._step % self._rows
        if place == 0:
            self._measure_pending()
        for name, x in raw.items():
            self._block[name][place] = x
        self._step += 1

    def close_run(self, run: int, steps_done: int) -> None:
        """Keep only `steps_done` rows of a run that has stopped."""
        self._end[run] = steps_done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.flush()

    @property
    def due(self) -> bool:
        return self._step - self._first_step >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS

    def flush(self) -> None:
        self._measure_pending()
        if self._measured:
            names = self._measured[0][0]
            block = np.concatenate([values for _, values in self._measured])
            finite = np.isfinite(block)
            for run, end in enumerate(self._end):
                rows = int(min(len(block), end - self._first_step))
                if rows > 0:
                    steps = np.arange(self._first_step, self._first_step + rows)
                    values = {name: np.ascontiguousarray(block[:rows, m, run]) for m, name in enumerate(names)}
                    nonfinite = (~finite[:rows, :, run]).sum(1)
                    self._emit(run, {"step": steps, **values, "nonfinite": nonfinite})
            self._first_step += len(block)
            self._measured.clear()
        self._flushed = time.monotonic()

    def _measure_pending(self) -> None:
        """Turn the steps that came in since the last time into rows."""
        pending = self._step - self._measured_to
        if pending:
            metrics = self._measure(self._block)
            first = self._measured_to % self._rows
            rows = [x[first : first + pending].to("cpu", torch.float64) for x in metrics.values()]
            self._measured.append((tuple(metrics), torch.stack(rows, 1).numpy()))
            self._measured_to = self._step
