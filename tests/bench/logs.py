"""What recording costs: the same stack with and without it, and W&B by the row."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np

from src.config import RunConfig
from src.recording import Emit
from src.store import RunDirectory
from src.tracking import Tracker
from tests.bench import ours
from tests.bench.commands import scratch_folder, sweep
from tests.bench.page import Section, Target
from tests.bench.timing import Spread, by_turns
from tests.stacks import configs

PROSE = """\
A stack of 8 toy runs (SGD, one thread, {steps} steps after warm-up) in this process: `train_stack` as it is, its
rows to the history file and to W&B offline; and the same stack with the metrics not computed, no rows kept and
nothing written. What the first takes longer is the share of logging. Gradient norms are in both: training itself
looks at them. Below it the same share for `python -m src.run -m {overrides}` ({sweep_steps} steps), with
`tracking=wandb_offline` against `tracking=none`: W&B's part alone, on both cores.

W&B by the row: {rows} rows of {columns} columns. Ours is `log` of {batch} rows at once into the offline file we
write ourselves, `run.log` is W&B's own call, on the same machine in the same process, in offline mode. `start` and
`finish` are opening and closing one W&B run."""

STEPS, RUNS = 200, 8
SWEEP_STEPS = 150
ROWS, BATCH = 1_000, 100


class _NoRecorder:
    """In the place of `src.recording.Recorder`."""

    due = False

    def __init__(self, *_: object) -> None: ...
    def __enter__(self) -> "_NoRecorder":
        return self

    def __exit__(self, *_: object) -> None: ...
    def add(self, metrics: object) -> None: ...
    def close_run(self, run: int, steps_done: int) -> None: ...
    def flush(self) -> None: ...


@contextmanager
def nothing_recorded() -> Iterator[None]:
    with patch("src.train.Recorder", _NoRecorder):
        yield


@contextmanager
def recorded(runs: list[RunConfig], tracked: bool) -> Iterator[Emit]:
    """An `emit` to run directories, and to W&B offline if `tracked`."""
    tracking = configs("tracking=wandb_offline" if tracked else "tracking=none")[0].tracking
    with scratch_folder() as folder:
        directories = [RunDirectory(folder / str(r)) for r in range(len(runs))]
        trackers: list[Tracker] = []
        for r, (run, directory) in enumerate(zip(runs, directories, strict=True)):
            directory.create(plain(run, r), ["bench"])
            directory.start({}, len(runs))
            trackers.append(tracking.build().start(plain(run, r), directory.path))

        def emit(run: int, columns: Mapping[str, np.ndarray]) -> None:
            directories[run].append(columns)
            trackers[run].log(columns)

        yield emit
        for directory, tracker in zip(directories, trackers, strict=True):
            directory.end("finished")
            tracker.finish(0)


def plain(run: RunConfig, number: int) -> dict[str, Any]:
    return {"id": f"{number:010x}", "label": f"bench{number}", "sweep": "bench", **run.plain()}


def measure(rounds: int, known: dict[str, float]) -> Section:
    runs = ours.toy_runs(RUNS, ours.WARM_UP + STEPS)

    def without() -> float:
        with nothing_recorded():
            return ours.seconds_of(runs)

    def to_disk(tracked: bool) -> float:
        with recorded(runs, tracked) as emit:
            return ours.seconds_of(runs, emit)

    samples = by_turns(
        {
            "nothing recorded": without,
            "rows computed": lambda: ours.seconds_of(runs),
            "rows to disk": partial(to_disk, False),
            "rows to disk and W&B": partial(to_disk, True),
            "sweep, tracked": lambda: sweep(ours.TOY_48, 48, SWEEP_STEPS).training,
            "sweep, untracked": lambda: sweep(ours.TOY_48, 48, SWEEP_STEPS, tracked=False).training,
        }
        | {name: partial(wandb_cost, name) for name in WANDB_COSTS},
        rounds,
    )
    stages = ["nothing recorded", "rows computed", "rows to disk", "rows to disk and W&B"]
    table = [["a stack of 8", "microseconds a run-step", "share of the whole"]]
    for before, name in zip(["", *stages], stages, strict=False):
        micros = [1e6 * seconds / (RUNS * STEPS) for seconds in samples[name]]
        added = f"{_share(samples[name], samples[before], samples[stages[-1]]):+.1f} %" if before else ""
        table.append([name, f"{Spread.of(micros):.0f}", added])
    sweep_share = _share(samples["sweep, tracked"], samples["sweep, untracked"], samples["sweep, tracked"])
    table.append(["the whole sweep: W&B on against off", "", f"{sweep_share:.1f} %"])
    table += [
        [name, f"{Spread.of([1e6 * s for s in samples[name]]):.1f} ({unit})", ""] for name, unit in WANDB_COSTS.items()
    ]
    share = _share(samples[stages[-1]], samples[stages[0]], samples[stages[-1]])
    return Section(
        "Logging",
        PROSE.format(
            steps=STEPS, overrides=" ".join(ours.TOY_48), sweep_steps=SWEEP_STEPS, rows=ROWS, batch=BATCH,
            columns=len(_columns(1)),
        ),
        table,
        [Target("logging, of the time of a stack", 15, share, "%", at_most=True)],
    )  # fmt: skip


def _share(more: list[float], less: list[float], whole: list[float]) -> Spread:
    return Spread.of([100 * (a - b) / c for a, b, c in zip(more, less, whole, strict=True)])


# ---- W&B by the row

WANDB_COSTS = {
    "our W&B file: a row": "a row", "our W&B file: start and finish": "a run", "W&B's `run.log`: a row": "a row",
    "W&B's `init` and `finish`": "a run",
}  # fmt: skip


def wandb_cost(name: str) -> float:
    """Seconds a row, or a run."""
    if "a row" in name:
        return (_our_rows if name.startswith("our") else _their_rows)() / ROWS
    return _our_run() if name.startswith("our") else _their_run()


def _columns(rows: int) -> dict[str, np.ndarray]:
    """So many steps of a toy run, as the recorder gives them."""
    seen: list[Mapping[str, np.ndarray]] = []
    ours.seconds_of(ours.toy_runs(1, ours.WARM_UP + rows), lambda _, columns: seen.append(columns))
    return {name: np.concatenate([part[name] for part in seen])[-rows:] for name in seen[0]}


def _our_rows() -> float:
    columns = _columns(ROWS)
    with scratch_folder() as folder:
        run = configs("tracking=wandb_offline")[0]
        tracker = run.tracking.build().start(plain(run, 0), folder)
        parts = [{name: v[k : k + BATCH] for name, v in columns.items()} for k in range(0, ROWS, BATCH)]
        seconds = _seconds(lambda: [tracker.log(part) for part in parts])
        tracker.finish(0)
    return seconds


def _our_run() -> float:
    run = configs("tracking=wandb_offline")[0]
    with scratch_folder() as folder:
        return _seconds(lambda: run.tracking.build().start(plain(run, 0), folder).finish(0))


def _their_rows() -> float:
    columns = _columns(ROWS)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*(v.tolist() for v in columns.values()), strict=True)]
    with scratch_folder() as folder:
        run = _their_init(str(folder))
        seconds = _seconds(lambda: [run.log(row, step=int(row["step"])) for row in rows])
        run.finish()
    return seconds


def _their_run() -> float:
    with scratch_folder() as folder:
        return _seconds(lambda: _their_init(str(folder)).finish())


def _their_init(folder: str) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True, console="off")
    return wandb.init(project="bench", dir=folder, mode="offline", reinit="create_new", settings=settings)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
