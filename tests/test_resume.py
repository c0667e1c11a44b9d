"""Whatever stops a sweep, the same command finishes it, and nobody can tell from the histories that it was stopped."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from src.checkpoint import Checkpoints, Snapshot
from src.config import Launcher
from src.launching import locks, work
from src.launching.loading import load_data
from src.store import read_history
from src.train import train_stack
from tests.conftest import TOY
from tests.stacks import SMALL_LLAMA, configs

LLAMA = " ".join([*SMALL_LLAMA, "tracking=none"])


def folders(sweep: Path) -> list[Path]:
    return [sweep / run["dir"] for run in json.loads((sweep / "sweep.json").read_text())["runs"]]


def histories(sweep: Path) -> dict[str, bytes]:
    """Every run's rows to the last bit, however they were divided into batches."""
    found = {}
    for folder in folders(sweep):
        history = read_history(folder)
        assert history is not None, folder
        found[folder.name] = b"".join(history[name].to_numpy().tobytes() for name in history.column_names)
    return found


def states(sweep: Path) -> dict[str, str]:
    return {folder.name: json.loads((folder / "status.json").read_text())["state"] for folder in folders(sweep)}


# ---- checkpoints


def test_a_snapshot_comes_back_as_it_was_views_and_all(tmp_path):
    buffer = torch.arange(6.0).view(2, 3)
    checkpoints = Checkpoints(tmp_path / "c", None, None)
    assert checkpoints.load() is None
    checkpoints.save(
        Snapshot(7, {"row": buffer[0], "column": buffer[:, 1], "nan": torch.tensor([torch.nan])}, {"rows": [7, 3]})
    )
    snapshot = checkpoints.load()
    assert snapshot is not None
    assert (snapshot.step, snapshot.facts["rows"]) == (7, [7, 3])
    assert snapshot.tensors["column"].tolist() == [1.0, 4.0]
    assert snapshot.tensors["nan"].isnan().all()


def test_of_several_the_newest_that_can_be_read_counts_and_older_ones_are_dropped(tmp_path):
    checkpoints = Checkpoints(tmp_path, None, None)
    for step in (5, 10):
        checkpoints.save(Snapshot(step, {"x": torch.tensor([step])}, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]
    shutil.copytree(tmp_path / "step-10", tmp_path / "step-20")
    (tmp_path / "step-20" / "state.safetensors").write_bytes(b"\x00" * 4)
    shutil.copytree(tmp_path / "step-10", tmp_path / ".partial")
    snapshot = checkpoints.load()
    assert snapshot is not None
    assert snapshot.step == 10


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    Checkpoints(tmp_path, None, None).save(Snapshot(1, {"x": torch.zeros(2)}, {"rows": [1]}))
    assert sorted(path.name for path in (tmp_path / "step-1").iterdir()) == ["state.json", "state.safetensors"]


def test_they_are_due_every_so_many_updates_or_minutes(tmp_path):
    by_steps = Checkpoints(tmp_path, None, 4)
    assert [n for n in range(1, 13) if by_steps.due(n)] == [4, 8, 12]
    assert not Checkpoints(tmp_path, 10.0, None).due(1)
    assert Checkpoints(tmp_path, 1e-9, None).due(1)
    assert not Checkpoints(tmp_path, None, None).due(1)


class Stopping(Checkpoints):
    """Checkpoints of a training that is stopped after some updates."""

    def __init__(self, folder: Path, after: int) -> None:
        super().__init__(folder, None, None)
        self.left = after

    def stop(self) -> bool:
        self.left -= 1
        return self.left == 0


MIXED = (
    "loss=dpo beta=0.1 seed=1", "loss=ipo optimizer=adam lr=1e-3 scheduler=cosine",
    "loss=dpo optimizer=sgd optimizer.momentum=0.9 max_grad_norm=0.1", "loss=ipo optimizer=rmsprop lr=1e-3 seed=2",
    "loss=ipo lr=1e30",
)  # fmt: skip


@pytest.mark.parametrize(
    "model", ["model=tabular data=synthetic data.prompts=3", f"{LLAMA} data=synthetic data.prompts=3"]
)
@pytest.mark.parametrize("after", [1, 3, 11])
def test_an_interrupted_stack_goes_on_as_if_it_had_not_been(tmp_path, model, after):
    """Weights, momenta, schedules, data order, counters and the runs that had already diverged."""
    common = f"{model} data=synthetic data.prompts=3 tracking=none batch_size=2 steps=12"
    runs = configs(*(f"{common} {own}" for own in MIXED))
    data = load_data(runs)

    def rows_of(*attempts: Stopping) -> tuple[list[list[dict]], list]:
        rows: list[list[dict]] = [[] for _ in runs]

        def emit(r, columns):
            rows[r] += pa.table(dict(columns)).to_pylist()

        for checkpoints in attempts:
            try:
                outcomes, _ = train_stack(
                    runs, data, emit, torch.device("cpu"), None, None, checkpoints, checkpoints.stop
                )
            except KeyboardInterrupt:
                continue
        return rows, outcomes

    whole, outcomes = rows_of(Stopping(tmp_path / "never", -1))
    stopped, outcomes_stopped = rows_of(Stopping(tmp_path / "once", after), Stopping(tmp_path / "once", -1))
    assert "diverged" in {outcome.state for outcome in outcomes}
    assert outcomes == outcomes_stopped
    for ours, theirs in zip(stopped, whole, strict=True):
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(list(one.values()), list(other.values()), equal_nan=True)


KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nobody closes its files


@KILLED
def test_a_sweep_goes_on_from_its_checkpoint_and_says_so_in_the_status(sweep, tmp_path, monkeypatch):
    cells = [f"{' '.join(TOY[:-1])} steps=20 loss={loss}" for loss in ("dpo", "ipo")]
    assert sweep(*cells, output=tmp_path / "whole") == 0
    launcher = Launcher(processes=1, checkpoint_steps=8)
    train = work.train_stack
    began = []

    def dies_after_a_while(*arguments):
        runs, data, emit, device, _, references, checkpoints, *rest = arguments
        began.append(checkpoints.load())

        def die(step, margins):
            if step == 13 and len(began) == 1:
                raise SystemExit("killed")  # nothing here may catch it

        return train(runs, data, emit, device, die, references, checkpoints, *rest)

    monkeypatch.setattr(work, "train_stack", dies_after_a_while)
    with pytest.raises(SystemExit):
        sweep(*cells, launcher=launcher)
    assert set(states(tmp_path / "s").values()) == {"running"}
    assert sweep(*cells, launcher=launcher) == 0
    assert began[0] is None
    assert began[1].step == 8
    assert histories(tmp_path / "s") == histories(tmp_path / "whole" / "s")
    for folder in folders(tmp_path / "s"):
        status = json.loads((folder / "status.json").read_text())
        assert (status["state"], status["attempt"], status["resumed"][0]["step"]) == ("finished", 2, 8)
    assert not list((tmp_path / "s" / ".checkpoints").iterdir())


@KILLED
def test_a_checkpoint_without_the_history_it_stands_on_is_not_used(sweep, tmp_path, monkeypatch):
    cells = [f"{' '.join(TOY[:-1])} steps=20 loss={loss}" for loss in ("dpo", "ipo")]
    sweep(*cells, output=tmp_path / "whole")
    train = work.train_stack

    def dies(*arguments):
        def die(step, margins):
            if step == 13:
                raise SystemExit("killed")

        return train(*arguments[:4], die, *arguments[5:])

    with monkeypatch.context() as dying, pytest.raises(SystemExit):
        dying.setattr(work, "train_stack", dies)
        sweep(*cells, launcher=Launcher(processes=1, checkpoint_steps=8))
    (folders(tmp_path / "s")[1] / "history.arrow").write_bytes(b"")
    assert sweep(*cells) == 0
    assert histories(tmp_path / "s") == histories(tmp_path / "whole" / "s")


def test_a_run_that_died_between_its_last_row_and_its_last_status_is_not_trained_again(sweep, tmp_path, monkeypatch):
    sweep(" ".join(TOY))
    (folder,) = folders(tmp_path / "s")
    before = (folder / "history.arrow").read_bytes()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
    monkeypatch.setattr(work, "train_stack", None)
    assert sweep(" ".join(TOY)) == 0
    assert states(tmp_path / "s") == {folder.name: "finished"}
    assert (folder / "history.arrow").read_bytes() == before


# ---- memory


def test_a_stack_that_does_not_fit_is_trained_in_halves_and_this_is_said(sweep, tmp_path, monkeypatch, capsys):
    train, sizes = work.train_stack, []

    def small_machine(runs, *rest):
        sizes.append(len(runs))
        if len(runs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return train(runs, *rest)

    monkeypatch.setattr(work, "train_stack", small_machine)
    assert sweep(*(f"{' '.join(TOY)} seed={seed}" for seed in range(5))) == 0
    assert sizes == [5, 2, 3, 1, 2]
    assert set(states(tmp_path / "s").values()) == {"finished"}
    assert "a stack of 5 did not fit and was trained in halves: OutOfMemoryError" in capsys.readouterr().out


def test_one_run_that_does_not_fit_has_failed(sweep, tmp_path, monkeypatch):
    def no_machine(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(work, "train_stack", no_machine)
    assert sweep(" ".join(TOY)) == 1
    assert set(states(tmp_path / "s").values()) == {"failed"}


# ---- disks


def test_a_disk_that_fills_up_costs_the_rest_of_the_run_and_not_what_it_has(environment, tmp_path):
    """A limit on file size stands for the disk: the write fails in the same call, with another number."""
    command = [sys.executable, "-m", "src.run", *TOY[:-1], "steps=3000", "sweep=s"]
    limit = 200_000
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "failed: OSError: [Errno 27] " in done.stdout
    (folder,) = folders(tmp_path / "outputs" / "s")
    history = read_history(folder)
    assert history is not None
    assert history["step"].to_pylist() == list(range(len(history)))
    assert len(history) >= 200


# ---- several processes


def begin(environment, cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "src.run", "-m", *overrides, "sweep=s"]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), (out, err)
    return out


SWEEP = ("loss=dpo,ipo,simpo", "optimizer=sgd,adam", "seed=0,1", "lr=1e-2", *(o for o in TOY if "steps" not in o))


def test_two_processes_given_the_same_sweep_train_each_run_once(environment, tmp_path):
    both = [begin(environment, tmp_path, *SWEEP, "steps=400", "compute.stack_size=2") for _ in range(2)]
    printed = "".join(end(process) for process in both)
    assert set(states(tmp_path / "outputs" / "s").values()) == {"finished"}
    assert len(folders(tmp_path / "outputs" / "s")) == 12
    assert printed.count(" 400 updates; ") == 12


def test_a_run_another_process_is_training_is_waited_for_and_taken_over_if_that_one_dies(sweep, tmp_path, environment):
    other = begin(environment, tmp_path, *TOY[:-1], "steps=100000000")
    folder = tmp_path / "outputs" / "s"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(folder.glob("*/history.arrow")):
        time.sleep(0.05)
    (run,) = folders(folder)
    assert locks.held(folder, run.name.rsplit("-", 1)[-1])
    second = begin(environment, tmp_path, *TOY[:-1], "steps=100000000")
    assert second.stdout is not None
    for line in second.stdout:
        if "waiting for 1 runs that another process is training" in line:
            break
    os.killpg(other.pid, signal.SIGKILL)
    other.communicate()
    while json.loads((run / "status.json").read_text())["attempt"] == 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    assert not locks.held(folder, run.name.rsplit("-", 1)[-1])


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_sweep_ends_with_the_histories_of_one_that_was_not(environment, tmp_path):
    """kill -9 to the whole process group, from before the first folder to after the last row; then on to the end."""
    overrides = (*SWEEP, "steps=1000", "compute.stack_size=3", "launcher.checkpoint_steps=100")
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    started = time.monotonic()
    end(begin(environment, tmp_path / "whole", *overrides))
    seconds = time.monotonic() - started
    folder, whole = tmp_path / "killed" / "outputs" / "s", histories(tmp_path / "whole" / "outputs" / "s")
    moments, kills, kills_in_training = random.Random(0), 0, 0
    while kills < 20:
        before = written(folder)
        process = begin(environment, tmp_path / "killed", *overrides)
        try:
            process.wait(timeout=moments.uniform(0.2, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            found = [json.loads(path.read_text())["state"] for path in folder.glob("*/status.json")]
            kills_in_training += "running" in found
        process.communicate()
        assert before.items() <= written(folder).items(), "a finished run was touched"
        if len(written(folder)) == len(whole):  # nothing is left to kill: begin anew
            assert histories(folder) == whole
            shutil.rmtree(folder)
    end(begin(environment, tmp_path / "killed", *overrides))
    assert histories(folder) == whole
    assert set(states(folder).values()) == {"finished"}
    assert kills_in_training >= 5  # the others fell into starting up


def written(sweep: Path) -> dict[Path, int]:
    """When the history of each finished run was written."""
    ended = [path.parent for path in sweep.glob("*/status.json") if json.loads(path.read_text())["state"] == "finished"]
    return {folder: (folder / "history.arrow").stat().st_mtime_ns for folder in ended}


def test_a_driver_that_is_killed_takes_its_workers_along(environment, tmp_path):
    process = begin(environment, tmp_path, *SWEEP, "steps=100000000", "compute.stack_size=2", "launcher.processes=2")
    folder = tmp_path / "outputs" / "s"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*/history.arrow"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()  # the driver alone
    process.communicate()
    ids = [run.name.rsplit("-", 1)[-1] for run in folders(folder)]
    while any(locks.held(folder, run) for run in ids):
        assert time.monotonic() < deadline, "a worker goes on without its driver"
        time.sleep(0.1)


def test_a_worker_that_is_killed_costs_a_stack_one_more_start(environment, tmp_path):
    overrides = (*SWEEP, "steps=3000", "compute.stack_size=6", "launcher.processes=2")
    process = begin(environment, tmp_path, *overrides)
    folder = tmp_path / "outputs" / "s"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*/history.arrow"))) < 12:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    end(process)
    assert set(states(folder).values()) == {"finished"}
    assert max(json.loads((run / "status.json").read_text())["attempt"] for run in folders(folder)) == 2


def workers_of(driver: int) -> list[int]:
    """The processes that were forked to train: grandchildren of the driver with memory of torch's size."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = int(status.parent.name), int(status.read_text().rsplit(")", 1)[1].split()[1])
            grandparent = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        if grandparent == driver:
            found.append(pid)
    return sorted(found)
