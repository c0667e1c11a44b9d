"""One stack of a sweep, from its locks to its last status: what a worker does, wherever it runs."""

import hashlib
import json
import time
import traceback
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock

from src import distributed
from src.checkpoint import Checkpoints
from src.config import Evaluation, Launcher, one_line
from src.data.pairs import PairData
from src.evaluation import Evaluated
from src.launching import follow, locks
from src.launching.loading import Loaded, load_data
from src.launching.plan import Planned
from src.logprobs import ReferenceLogps
from src.reference import References
from src.store import (
    ENDED,
    EVALUATIONS,
    PROBES,
    Columns,
    RunDirectory,
    State,
    columns_of,
    read_history,
    read_samples,
    read_stream,
)
from src.tracking import NoTracker
from src.tracking.mirror import Mirror
from src.train import OnStep, Outcome, Stop, train_stack


@dataclass(frozen=True)
class Work:
    """A stack to train, with all a process on another machine needs for it. `folder` is the sweep's."""

    folder: Path
    sweep: str
    runs: tuple[Planned, ...]
    command: tuple[str, ...]
    launcher: Launcher

    @property
    def checkpoints(self) -> Checkpoints:
        """They belong to this very stack: other runs beside it, and it is another."""
        name = hashlib.sha256(" ".join(run.id for run in self.runs).encode()).hexdigest()[:10]
        folder = self.folder / ".checkpoints" / name
        return Checkpoints(folder, self.launcher.checkpoint_minutes, self.launcher.checkpoint_steps)

    @property
    def cores(self) -> int | None:
        """As many as a cluster gives a stack; None: all of this machine's."""
        return None if self.launcher.engine == "local" else self.launcher.cpus

    def directory(self, run: Planned) -> RunDirectory:
        return RunDirectory(self.folder / run.dir)


@dataclass(frozen=True)
class Ended:
    """How a run ended, with a line to say about it. `found`: it had finished before; `busy`: another process has it."""

    id: str
    state: State | Literal["found", "busy"]
    line: str = ""


@dataclass
class Shared:
    """What the stacks that one process trains, one after another, need not make again."""

    loaded: Loaded
    references: MutableMapping[Any, ReferenceLogps]

    @classmethod
    def nothing_yet(cls) -> "Shared":
        return cls({}, {})


def is_done(run: Planned, directory: RunDirectory) -> bool:
    """A finished run is done, unless weights are asked for that were not kept, or evaluations that were not made."""
    state = directory.state
    kept = not run.config.save or state == "diverged" or (directory.path / "policy").is_dir()
    return state in ENDED and kept and (not run.config.evaluation.on or _evaluated_as_asked(run, directory))


def _evaluated_as_asked(run: Planned, directory: RunDirectory) -> bool:
    """Was, or is, the run on disk evaluated in the way that is asked for now? Its identity does not say."""
    try:
        config = json.loads((directory.path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(config.get("evaluation", asdict(Evaluation())) == asdict(run.config.evaluation))


def train(
    work: Work, shared: Shared | None = None, on_step: OnStep | None = None, stop: Stop | None = None
) -> list[Ended]:
    """Train what is missing of a stack and write down how each of its runs ended.

    Whatever goes wrong belongs to these runs and is reported, not raised, so that a sweep goes on.

    Args:
        on_step, stop: as in `train_stack`. Runs that were stopped end as interrupted.
    """
    held: dict[str, FileLock] = {}
    ended: list[Ended] = []
    missing: list[Planned] = []
    try:
        for run in work.runs:
            lock = locks.acquire(work.folder, run.id)
            if lock is None:
                ended.append(Ended(run.id, "busy", f"{run.label}: another process is training it"))
                continue
            held[run.id] = lock
            directory = work.directory(run)
            if is_done(run, directory) or _complete(work, run, directory):
                ended.append(Ended(run.id, "found"))
            else:
                missing.append(run)
        if missing:
            ended += _Stack(replace(work, runs=tuple(missing)), shared or Shared.nothing_yet(), on_step, stop).train()
    finally:
        for lock in held.values():
            lock.release()
    return ended


def lost(work: Work, reason: str) -> list[Ended]:
    """Write down what became of a stack whose worker died as often as it was started."""
    ended = []
    for run in work.runs:
        directory = work.directory(run)
        if is_done(run, directory):
            ended.append(Ended(run.id, "found"))
            continue
        directory.adopt()
        directory.end("failed", reason=reason)
        ended.append(Ended(run.id, "failed", f"{run.label}: failed: {reason}"))
    return ended


def _complete(work: Work, run: Planned, directory: RunDirectory) -> bool:
    """Mark as finished a run whose process died after its last row was written and before it could say so."""
    if directory.state != "running" or (run.config.save and not (directory.path / "policy").is_dir()):
        return False
    history = read_history(directory.path)
    if history is None or len(history) < run.config.steps:
        return False
    columns, evaluations = columns_of(history), columns_of(read_stream(directory.path, EVALUATIONS))
    if not np.isfinite([columns["loss"][-1], columns["grad_norm"][-1]]).all():
        return False
    if run.config.evaluation.on and (
        not _evaluated_as_asked(run, directory) or evaluations.get("step", [0])[-1] < run.config.steps
    ):
        return False
    directory.adopt()
    directory.update(attempt=directory.status.get("attempt", 1) + 1)
    _mirror(work, run, directory, columns, evaluations).finish(0)
    directory.end("finished", steps_done=len(history), step=None, reason=None)
    return True


def _mirror(work: Work, run: Planned, directory: RunDirectory, history: Columns, evaluations: Columns) -> Mirror:
    """Begin the mirror of a run, and tell it what is on disk already."""
    config = run.plain_config(work.sweep)
    mirror = Mirror(run.config.tracking.build().start(config, directory.path, directory.status["attempt"]))
    mirror.replay(history, evaluations, read_samples(directory.path) if evaluations else [])
    return mirror


class _Stack:
    """The runs of a stack while it trains."""

    def __init__(self, work: Work, shared: Shared, on_step: OnStep | None, stop: Stop | None) -> None:
        self._work, self._shared, self._on_step, self._stop = work, shared, on_step, stop
        self._runs = work.runs
        self._directories = [work.directory(run) for run in work.runs]
        self._mirrors = [Mirror(NoTracker()) for _ in work.runs]
        self._last: list[Mapping[str, float]] = [{} for _ in work.runs]
        self._started = time.monotonic()

    def train(self) -> list[Ended]:
        configs = [run.config for run in self._runs]
        checkpoints = self._work.checkpoints
        try:
            data = load_data(configs, self._shared.loaded)
            compute = configs[0].compute.build()
            device = compute.prepare()
            compute.use_threads(configs[0].model.build().threads or self._work.cores)
            self._begin(data, checkpoints)
            kept = self._work.folder.parent / ".references"
            follow.tell(configs, kept, checkpoints.folder)
            references = References(kept, self._shared.references)
            outcomes, policy = train_stack(
                configs, data, self._emit, device, self._on_step, references, checkpoints, self._stop, self._keep
            )
            for r, run in enumerate(self._runs):
                if run.config.save and outcomes[r].state == "finished":
                    partial = self._directories[r].path / ".policy"
                    policy.save(r, partial)
                    partial.rename(self._directories[r].path / "policy")
        except KeyboardInterrupt:
            return self._end([Outcome("interrupted", reason="stopped by a signal")] * len(configs))
        except Exception as error:  # whatever went wrong belongs to these runs; the sweep goes on and reports it
            reason = f"{type(error).__name__}: {one_line(error)}"
            # The other processes are somewhere in the middle; torchrun ends them with this one.
            if distributed.size() > 1:
                self._end([Outcome("failed", reason=reason)] * len(configs), traceback=traceback.format_exc())
                raise
            if not _out_of_memory(error) or len(configs) == 1:
                outcomes = [Outcome("failed", reason=reason)] * len(configs)
                return self._end(outcomes, traceback=traceback.format_exc())
        else:
            ended = self._end(outcomes)
            checkpoints.remove()
            return ended
        return self._halves(reason)  # here, where the error no longer holds on to the stack's tensors

    def _begin(self, data: Sequence[PairData], checkpoints: Checkpoints) -> None:
        """Open the run directories and their mirrors, at the rows a checkpoint goes on from or at none."""
        members = list(zip(self._runs, self._directories, strict=True))
        snapshot = checkpoints.load()
        found: list[tuple[Columns, Columns] | None] = [None] * len(members)
        if snapshot is not None and all(_evaluated_as_asked(*member) for member in members):
            rows, every = snapshot.facts["rows"], self._runs[0].config.evaluation.every
            found = [d.resume(n, len(rows), snapshot.step, every) for d, n in zip(self._directories, rows, strict=True)]
        if any(rows_on_disk is None for rows_on_disk in found):  # fewer than the checkpoint stands on, or other ones
            checkpoints.remove()
            found = [None] * len(members)
        for r, (run, directory) in enumerate(members):
            if found[r] is None:
                before = directory.status
                again = before.get("state", "planned") != "planned"
                attempt = before.get("attempt", 1) + again
                directory.create(run.plain_config(self._work.sweep), self._work.command, attempt)
                directory.start(data[r].report(), len(self._runs))
            self._mirrors[r] = _mirror(self._work, run, directory, *(found[r] or ({}, {})))

    def _emit(self, r: int, columns: Mapping[str, np.ndarray]) -> None:
        self._directories[r].append(columns)
        self._mirrors[r].log(columns)
        self._last[r] = {name: float(values[-1]) for name, values in columns.items()}

    def _keep(self, r: int, found: Evaluated) -> None:
        """The row of metrics comes last: where it is, the rest of that evaluation is."""
        directory, mirror = self._directories[r], self._mirrors[r]
        if found.probes:
            directory.append(found.probes, PROBES)
        if found.answers:
            directory.append_samples(found.answers)
        directory.append(found.metrics, EVALUATIONS)
        mirror.evaluated(found.metrics, found.answers)

    def _halves(self, reason: str) -> list[Ended]:
        """Both halves of a stack for which there was not enough memory."""
        for mirror in self._mirrors:
            mirror.finish(1)
        middle = len(self._runs) // 2
        torch.cuda.empty_cache()
        ended = []
        for part in (self._runs[:middle], self._runs[middle:]):
            ended += _Stack(replace(self._work, runs=part), self._shared, self._on_step, self._stop).train()
        said = f"a stack of {len(self._runs)} did not fit and was trained in halves: {reason[:200]}"
        return [*ended[:-1], replace(ended[-1], line=f"{ended[-1].line}\n{said}")]

    def _end(self, outcomes: Sequence[Outcome], **more: str) -> list[Ended]:
        """Write every run's last status. Those that did not finish come first: see `_complete`."""
        seconds = round(time.monotonic() - self._started, 3)
        order = sorted(range(len(self._runs)), key=lambda r: outcomes[r].state == "finished")
        ended = {}
        for r in order:
            outcome, label = outcomes[r], self._runs[r].label
            rows = outcome.steps_done or int(self._last[r].get("step", -1)) + 1
            line = f"{label}: {outcome.state}: {outcome.reason}"
            if outcome.state == "finished":
                line = f"{label}: {rows} updates; {_last_values(self._last[r])}"
                line += f"; {outcome.reason}" if outcome.reason else ""
            status: dict[str, Any] = {"steps_done": rows, "step": outcome.step, "reason": outcome.reason, **more}
            self._mirrors[r].finish(0 if outcome.state in ENDED else 1)  # first: a finished run's mirror is whole
            try:
                self._directories[r].end(outcome.state, train_seconds=seconds, **status)
            except OSError as error:  # a full disk takes no status either; the history is there up to that point
                line += f"; its status could not be written: {error}"
            ended[r] = Ended(self._runs[r].id, outcome.state, line)
        return [ended[r] for r in range(len(self._runs))]


def _out_of_memory(error: BaseException) -> bool:
    """torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _last_values(last: Mapping[str, float]) -> str:
    """What there is of the numbers to look at first; a reward model has no margin in nats."""
    shown = {
        "margin": "margin h {:.4g} nats",
        "rewards/margins": "reward margin {:.4g}",
        "log_pi/rejected": "log pi(rejected) {:.4g} nats",
        "loss": "loss {:.4g}",
    }
    return "; ".join(text.format(last[name]) for name, text in shown.items() if name in last)
