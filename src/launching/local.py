"""Train the cells of a sweep on this machine, in stacks."""

import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from src.config import Destination, RunConfig, one_line
from src.data.pairs import PairData
from src.errors import BadInput
from src.launching.plan import Cell, Plan, Planned, plan, write_manifest
from src.logprobs import ReferenceLogps
from src.progress import SweepProgress
from src.stacking import plan_stacks
from src.store import ENDED, RunDirectory, State
from src.tracking import NoTracker, Tracker
from src.train import Outcome, check_ranks, how_to_build, train_stack


@dataclass
class _Live:
    """A run while its stack trains."""

    planned: Planned
    directory: RunDirectory
    tracker: Tracker
    last: Mapping[str, float]

    def emit(self, columns: Mapping[str, np.ndarray]) -> None:
        self.directory.append(columns)
        self.tracker.log(columns)
        self.last = {name: float(values[-1]) for name, values in columns.items()}


def launch(cells: Sequence[Cell], destination: Destination, command: Sequence[str]) -> int:
    """Train what is not finished yet, and say what happened.

    Everything that can be found wrong beforehand is, before the first folder is made.

    Returns:
        The exit code: 0, or 1 when a run failed, or 130 after Ctrl-C. A diverged run is a result, not a failure.

    Raises:
        BadInput: a configuration, the data, the device or the output folder cannot be used.
    """
    the_plan = plan(cells, destination)
    directories = {run.id: RunDirectory(the_plan.folder / run.dir) for run in the_plan.runs}
    todo = [run for run in the_plan.runs if not _is_done(run, directories[run.id])]
    configs = [run.config for run in todo]
    device = _prepare(configs)
    data = load_data(configs)
    check_ranks(configs, data)
    stacks = plan_stacks(configs, data)
    for stack in stacks:
        _try_model(configs[stack[0]], data[stack[0]], device)
    write_manifest(the_plan, command)
    try:
        for run in todo:
            directories[run.id].create(the_plan.plain_config(run), command)
    except OSError as error:
        raise BadInput(f"output folder {the_plan.folder}: {error}") from error

    with SweepProgress(len(todo), sum(config.steps for config in configs)) as progress:
        found = len(the_plan.runs) - len(todo)
        merged = len(cells) - len(the_plan.runs)
        progress.say(
            f"{the_plan.folder}: {len(todo)} runs in {len(stacks)} stacks"
            + (f"; {found} already finished" if found else "")
            + (f"; {merged} cells ask for a run another cell already asks for" if merged else "")
        )
        states: dict[str, State] = {}
        references: dict[Any, ReferenceLogps] = {}
        try:
            for stack in stacks:
                members = [todo[i] for i in stack]
                trained = _train(the_plan, members, [data[i] for i in stack], directories, device, progress, references)
                states |= trained
        except KeyboardInterrupt:
            progress.say("interrupted; the same command goes on from here, finished runs are not repeated")
            return 130
    return _summary(the_plan, states, progress, found)


def _is_done(run: Planned, directory: RunDirectory) -> bool:
    """A finished run is done, unless its weights are asked for now and were not kept."""
    kept = not run.config.save or directory.state == "diverged" or (directory.path / "policy").is_dir()
    return directory.state in ENDED and kept


def load_data(configs: Sequence[RunConfig]) -> list[PairData]:
    """Each run's data; runs that name the same data share one object."""
    loaded: dict[str, PairData] = {}
    result = []
    for config in configs:
        needs_tokenizer = config.data.needs("tokenizer")
        model = {k: v for k, v in config.model.plain().items() if k != "seed"} if needs_tokenizer else None
        key = repr((config.data.plain(), model))
        if key not in loaded:
            extra = {"tokenizer": config.model.build().tokenizer()} if needs_tokenizer else {}
            loaded[key] = config.data.build(**extra)
        result.append(loaded[key])
    return result


def _prepare(configs: Sequence[RunConfig]) -> torch.device:
    if len({repr(config.compute.plain()) for config in configs}) > 1:
        raise BadInput("compute differs between the runs of one sweep: it is a property of the machine, give one")
    device: torch.device = configs[0].compute.build().prepare() if configs else torch.device("cpu")
    return device


def _try_model(config: RunConfig, pairs: PairData, device: torch.device) -> None:
    """Build one policy and throw it away: a model that does not fit its data is found before anything is created."""
    spec = config.model.build()
    type(spec).stack([spec], [pairs], how_to_build(config, device))


def _train(
    the_plan: Plan,
    members: Sequence[Planned],
    data: Sequence[PairData],
    directories: Mapping[str, RunDirectory],
    device: torch.device,
    progress: SweepProgress,
    references: dict[Any, ReferenceLogps],
) -> dict[str, State]:
    """Train one stack and write down how each of its runs ended. A stack that raises does not stop the sweep."""
    live: list[_Live] = []
    started = time.monotonic()
    try:
        for run, pairs in zip(members, data, strict=True):
            directory = directories[run.id]
            directory.start(pairs.report(), len(members))
            tracker: Tracker = run.config.tracking.build().start(the_plan.plain_config(run), directory.path)
            live.append(_Live(run, directory, tracker, {}))
        members[0].config.compute.build().use_threads(members[0].config.model.build().threads)
        progress.stack_begins([run.label for run in members], members[0].config.steps)
        outcomes, policy = train_stack(
            [run.config for run in members],
            data,
            lambda r, columns: live[r].emit(columns),
            device,
            progress.step,
            references,
        )
        for r, trained in enumerate(live):
            if trained.planned.config.save and outcomes[r].state == "finished":
                partial = trained.directory.path / ".policy"
                policy.save(r, partial)
                partial.rename(trained.directory.path / "policy")
    except KeyboardInterrupt:
        _end(live, [Outcome("interrupted", reason="Ctrl-C")] * len(members), started, progress)
        raise
    except Exception as error:  # whatever went wrong belongs to these runs; the sweep goes on and reports it
        outcomes = [Outcome("failed", reason=f"{type(error).__name__}: {one_line(error)}")] * len(members)
        for run in members[len(live) :]:
            live.append(_Live(run, directories[run.id], NoTracker(), {}))
        _end(live, outcomes, started, progress, traceback=traceback.format_exc())
    else:
        _end(live, outcomes, started, progress)
    progress.stack_ends(len(members))
    return {run.id: outcome.state for run, outcome in zip(members, outcomes, strict=True)}


def _end(
    live: Sequence[_Live], outcomes: Sequence[Outcome], started: float, progress: SweepProgress, **more: str
) -> None:
    seconds = round(time.monotonic() - started, 3)
    for run, outcome in zip(live, outcomes, strict=False):
        rows = outcome.steps_done or int(run.last.get("step", -1)) + 1
        status: dict[str, Any] = {"steps_done": rows, "step": outcome.step, "reason": outcome.reason, **more}
        run.directory.end(outcome.state, train_seconds=seconds, **status)
        run.tracker.finish(0 if outcome.state in ENDED else 1)
        if outcome.state != "finished":
            progress.say(f"{run.planned.label}: {outcome.state}: {outcome.reason}")
        else:
            progress.say(f"{run.planned.label}: {rows} updates; {_last_values(run.last)}")


def _last_values(last: Mapping[str, float]) -> str:
    """What there is of the numbers to look at first; a reward model has no margin in nats."""
    shown = {
        "margin": "margin h {:.4g} nats",
        "rewards/margins": "reward margin {:.4g}",
        "log_pi/rejected": "log pi(rejected) {:.4g} nats",
        "loss": "loss {:.4g}",
    }
    return "; ".join(text.format(last[name]) for name, text in shown.items() if name in last)


def _summary(the_plan: Plan, states: Mapping[str, State], progress: SweepProgress, found: int) -> int:
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    said = [f"{n} {state}" for state, n in counts.items()] + ([f"{found} finished before"] if found else [])
    progress.say(f"{the_plan.folder}: {', '.join(said)}. Figures: python -m analysis {the_plan.folder}")
    with suppress(KeyError):
        return 1 if counts["failed"] else 0
    return 0
