"""Where the time of a stack's step goes, by torch.profiler."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

import src.recording
import src.train
from src.config import RunConfig
from src.launching.loading import load_data
from tests.bench.ours import WARM_UP, nothing

PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::baddbmm_"}
RECORDING, OPTIMIZER = "bench recording", "Optimizer.step#"


@dataclass(frozen=True)
class Groups:
    """Microseconds a run-step, by what they were spent on."""

    microseconds: dict[str, float]
    steps: int


def profiled(runs: list[RunConfig]) -> Groups:
    """Train the stack under the profiler; the steps of the warm-up do not count."""
    steps = runs[0].steps - WARM_UP
    started = ended = 0.0
    profiler = profile(activities=[ProfilerActivity.CPU], acc_events=True)

    def on_step(step: int, margins: Tensor) -> None:
        nonlocal started, ended
        if step == WARM_UP - 1:
            profiler.start()
            started = time.perf_counter()
        elif step == runs[0].steps - 1:
            ended = time.perf_counter()
            profiler.stop()

    with _labelled():
        src.train.train_stack(runs, load_data(runs), nothing, torch.device("cpu"), on_step)
    spent = {"products": 0.0, "other tensor operations": 0.0, "optimiser": 0.0, "recording": 0.0}
    for event in profiler.events():
        if _labelled_part(event.cpu_parent):
            continue  # counted with the whole it is part of
        if _labelled_part(event):
            spent["optimiser" if event.name.startswith(OPTIMIZER) else "recording"] += event.cpu_time_total
        elif event.name.startswith("aten::"):
            name = "products" if event.name in PRODUCTS else "other tensor operations"
            spent[name] += event.self_cpu_time_total
    wall = 1e6 * (ended - started)
    spent["Python, and what is between operations"] = wall - sum(spent.values())
    run_steps = steps * len(runs)
    return Groups({name: micros / run_steps for name, micros in spent.items()}, steps)


def _labelled_part(event: Any) -> bool:
    """Whether an event is, or is within, a stretch that is counted as a whole."""
    while event is not None:
        if event.name.startswith((OPTIMIZER, RECORDING)):
            return True
        event = event.cpu_parent
    return False


@contextmanager
def _labelled() -> Iterator[None]:
    def label(function: Callable[..., Any]) -> Callable[..., Any]:
        def labelled(*arguments: Any) -> Any:
            with record_function(RECORDING):
                return function(*arguments)

        return labelled

    recorder = src.recording.Recorder
    with (
        patch.object(recorder, "add", label(recorder.add)),
        patch.object(recorder, "flush", label(recorder.flush)),
    ):
        yield
