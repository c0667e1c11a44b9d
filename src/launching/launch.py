"""A sweep from its cells to its last line."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from src.config import Destination, Launcher, RunConfig
from src.data.pairs import PairData
from src.errors import BadInput
from src.launching import locks
from src.launching.cluster import check_engine, run_on_ray, run_on_slurm
from src.launching.loading import load_data
from src.launching.plan import Cell, Plan, Planned, plan, write_manifest
from src.launching.pool import processes_for, run_local
from src.launching.work import Ended, Shared, Work, is_done
from src.progress import SweepProgress
from src.stacking import plan_stacks, say_groups
from src.store import RunDirectory
from src.train import Stop, check_data, how_to_build

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Launched:
    """code: 0, 1 when a run failed, 130 when stopped by a signal. A diverged run is a result, not a failure.

    folders: the run directory of each cell, in the order they were given.
    """

    code: int
    folders: tuple[Path, ...]


def launch(cells: Sequence[Cell], destination: Destination, command: Sequence[str]) -> Launched:
    """Train what is not finished yet, and say what happened.

    Everything that can be found wrong beforehand is, before the first folder is made.

    Raises:
        BadInput: a configuration, the data, the device or the output folder cannot be used.
    """
    the_plan = plan(cells, destination)
    directories = {run.id: RunDirectory(the_plan.folder / run.dir) for run in the_plan.runs}
    todo = [run for run in the_plan.runs if not is_done(run, directories[run.id])]
    if todo:
        check_engine(destination.launcher, todo[0].config.compute.params["device"])
    sweep = _Sweep(the_plan, destination, tuple(command))
    stacks = sweep.stacks(todo)
    write_manifest(the_plan, command)
    try:
        for run in todo:
            if not directories[run.id].path.is_dir():
                directories[run.id].create(run.plain_config(the_plan.name), command)
    except OSError as error:
        raise BadInput(f"output folder {the_plan.folder}: {error}") from error

    found = len(the_plan.runs) - len(todo)
    merged = len(cells) - len(the_plan.runs)
    with (
        SweepProgress(len(todo), sum(run.config.steps for run in todo)) as progress,
        _until_signalled(progress) as stop,
    ):
        progress.say(
            f"{the_plan.folder_shown}: {len(todo)} runs in {len(stacks)} stacks"
            + (f"; {found} already finished" if found else "")
            + (f"; {merged} cells ask for a run another cell already asks for" if merged else "")
        )
        for line in sweep.notes:
            progress.say(line)
        states = sweep.train(stacks, progress, stop)
        stopped = stop()
    counts = Counter(states.values())
    counts["finished before"] += found + counts.pop("found", 0)
    counts["planned"] += len(todo) - len(states)
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    progress.say(f"{the_plan.folder_shown}: {said}. Figures: python -m analysis {the_plan.folder_shown}")
    if stopped:
        progress.say("stopped; the same command goes on from here, finished runs are not repeated")
    code = 130 if stopped else 1 if counts["failed"] else 0
    return Launched(code, tuple(directories[cell.config.id].path for cell in cells))


class _Sweep:
    """What the stacks of one sweep have in common."""

    def __init__(self, the_plan: Plan, destination: Destination, command: tuple[str, ...]) -> None:
        self._plan, self._launcher, self._command = the_plan, destination.launcher, command
        self._shared = Shared.nothing_yet()
        self._processes = 1
        self.notes: list[str] = []

    def stacks(self, todo: Sequence[Planned]) -> list[Work]:
        """Group the runs that are to be trained, after a look at everything that could be wrong with them.

        The runs of the whole sweep are grouped, not those that are left: a stack that was killed is then the same
        stack again, to the bit. Where only some of a stack's runs are left, those are grouped anew.
        """
        if not todo:
            return []
        every = [run.config for run in self._plan.runs]
        device = _prepare(every, self._launcher)
        data = load_data(every, self._shared.loaded)
        check_data(every, data)
        model = every[0].model.build()
        self._processes = self._launcher.processes or processes_for(
            every[0].compute.params["threads"] or model.threads, device
        )
        missing = {run.id for run in todo}
        is_left = [run.id in missing for run in self._plan.runs]
        whole, broken = [], []
        for stack in plan_stacks(every, data, self._processes):
            if all(is_left[i] for i in stack):
                whole.append(stack)
            else:
                broken += [i for i in stack if is_left[i]]
        rest = plan_stacks([every[i] for i in broken], [data[i] for i in broken], self._processes)
        stacks = whole + [[broken[i] for i in stack] for stack in rest]
        here = device if self._launcher.engine == "local" else torch.device("cpu")
        said = [line for stack in stacks for line in _try_model(every[stack[0]], data[stack[0]], here)]
        grouped = [i for stack in stacks for i in stack]
        self.notes = [*dict.fromkeys(said), *say_groups([every[i] for i in grouped], [data[i] for i in grouped])]
        return [self._work([self._plan.runs[i] for i in stack]) for stack in stacks]

    def _work(self, runs: Sequence[Planned]) -> Work:
        return Work(self._plan.folder, self._plan.name, tuple(runs), self._command, self._launcher)

    def train(self, works: Sequence[Work], progress: SweepProgress, stop: Stop) -> dict[str, str]:
        """Train all, those too that another process had begun to and did not finish; gives each run's end."""
        states: dict[str, str] = {}
        while works and not stop():
            busy: list[Planned] = []
            runs = {run.id: run for work in works for run in work.runs}
            progress.begin(
                [[run.label for run in work.runs] for work in works], [w.runs[0].config.steps for w in works]
            )
            for ended in self._engine(works, progress, stop):
                for run in ended:
                    states[run.id] = run.state
                    busy += [runs[run.id]] if run.state == "busy" else []
                    if run.line:
                        progress.say(run.line)
                progress.ended(len(ended))
            works = self.stacks(self._wait_for(busy, progress, stop))
        return states

    def _engine(self, works: Sequence[Work], progress: SweepProgress, stop: Stop) -> Iterator[list[Ended]]:
        if self._launcher.engine == "ray":
            return run_on_ray(works, stop)
        if self._launcher.engine == "slurm":
            return run_on_slurm(works, stop)
        return run_local(works, self._processes, self._shared, progress.step, stop)

    def _wait_for(self, busy: Sequence[Planned], progress: SweepProgress, stop: Stop) -> list[Planned]:
        """Wait until no other process trains these runs; gives all of them, whatever became of them."""
        if busy:
            progress.say(f"waiting for {len(busy)} runs that another process is training")
        while not stop() and any(locks.held(self._plan.folder, run.id) for run in busy):
            time.sleep(POLL_SECONDS)
        return list(busy)


@contextmanager
def _until_signalled(progress: SweepProgress) -> Iterator[Callable[[], bool]]:
    """Gives what says whether SIGINT or SIGTERM came; a second one is raised where it strikes."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, signal.default_int_handler)
        progress.say("stopping after this update; once more stops at once")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: asked
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _prepare(configs: Sequence[RunConfig], launcher: Launcher) -> torch.device:
    if len({repr(config.compute.plain()) for config in configs}) > 1:
        raise BadInput("compute differs between the runs of one sweep: it is a property of the machine, give one")
    if launcher.engine != "local":  # a cluster is used from a machine without a GPU
        return torch.device(configs[0].compute.params["device"])
    device: torch.device = configs[0].compute.build().prepare()
    return device


def _try_model(config: RunConfig, pairs: PairData, device: torch.device) -> list[str]:
    """Build one policy and throw it away: a model that does not fit its data is found before anything is created.

    Gives what is to be said about it.
    """
    spec = config.model.build()
    policy = type(spec).stack([spec], [pairs], how_to_build([config], device))
    return [*policy.notes, *config.compute.build().notes(config.dtype, config.autocast)]
