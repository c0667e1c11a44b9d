"""The same rows in W&B: read back from its own files, and never a reason to lose a run."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import wandb

import src.tracking
from src.config import Destination
from src.launching.launch import launch
from src.launching.plan import Cell
from src.tracking import Wandb
from src.tracking.about import SUMMARIES
from src.tracking.mirror import Mirror
from tests.conftest import TOY
from tests.wandb_files import kinds, records, values
from tests.wandb_server import serving

STEPS = 250  # more rows than one flush, and a file of more than one block


class Mirrored:
    """One run: its directory, and what W&B wrote about it."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.history = pa.ipc.open_stream((directory / "history.arrow").read_bytes()).read_all()
        (self.file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
        self.records = records(self.file)
        (self.run,) = kinds(self.records, "run")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [values(row.item) for row in kinds(self.records, "history")]

    @property
    def metrics(self) -> dict[str, Any]:
        return {metric.name or metric.glob_name: metric for metric in kinds(self.records, "metric")}

    @property
    def exit_code(self) -> int:
        (end,) = kinds(self.records, "exit")
        return end.exit_code


@pytest.fixture(scope="module")
def folder(convert, tmp_path_factory) -> Path:
    """A sweep of three runs, one of which diverges, mirrored offline."""
    output = tmp_path_factory.mktemp("outputs")
    toy = [*(o for o in TOY if not o.startswith(("tracking", "steps"))), "tracking=wandb_offline", f"steps={STEPS}"]
    cells = [(*toy, *own.split()) for own in ("loss=dpo", "loss=ipo beta=0.5", "loss=ipo lr=1e30")]
    assert launch([Cell(convert(*c), c) for c in cells], Destination(output=str(output), sweep="a-sweep"), []).code == 0
    return output / "a-sweep"


@pytest.fixture(scope="module")
def mirrored(folder) -> list[Mirrored]:
    return [Mirrored(folder / run["dir"]) for run in json.loads((folder / "sweep.json").read_text())["runs"]]


def test_every_row_and_every_value_of_the_history_is_in_wandb_and_nothing_is_thinned_out(mirrored):
    lengths = [len(run.rows) for run in mirrored]
    assert lengths[:2] == [STEPS, STEPS]
    assert 0 < lengths[2] < STEPS
    for run in mirrored:
        columns = run.history.to_pydict()
        assert [row["_step"] for row in run.rows] == columns["step"]
        for name, column in columns.items():
            mirror = [row[name] for row in run.rows]
            assert np.array_equal(np.array(mirror, float), np.array(column, float), equal_nan=True), name


def test_what_is_not_a_number_reaches_wandb_as_such(mirrored):
    assert not np.isfinite(mirrored[2].rows[-1]["loss"])
    assert mirrored[2].rows[-1]["nonfinite"] > 0


def test_runs_are_grouped_by_sweep_and_named_and_identified_by_the_run(mirrored):
    for run in mirrored:
        assert run.run.run_group == "a-sweep"
        assert run.run.display_name == run.config["label"]
        assert run.run.run_id.startswith(f"{run.config['id']}-")
        assert run.run.project == "margincall"
    assert len({run.run.run_id for run in mirrored}) == 3


def test_the_resolved_configuration_is_attached_with_every_nested_value(mirrored):
    for run in mirrored:
        attached = values(run.run.config.update)
        for key, value in run.config.items():
            if key not in {"format", "tracking", "compute"}:
                assert attached[key] == value, key
        assert attached["loss"]["beta"] == run.config["loss"]["beta"]
        assert attached["attempt"] == 1


def test_curves_are_drawn_over_step_and_summarised_by_their_worst_and_last_value(mirrored):
    metrics = mirrored[0].metrics
    assert metrics["step"].options.hidden
    assert metrics["*"].step_metric == "step"
    for name, worst in SUMMARIES.items():
        summary = metrics[name].summary
        asked = {how for how in ("min", "max", "mean", "last", "first", "copy", "none") if getattr(summary, how)}
        assert asked == {worst, "last"}
        assert name in mirrored[0].history.schema.names  # or it would summarise nothing


def test_a_diverged_run_has_not_crashed(mirrored):
    assert [run.exit_code for run in mirrored] == [0, 0, 0]


def test_wandb_keeps_to_its_folder_in_the_run_directory(folder, mirrored):
    for run in mirrored:
        files = {path.relative_to(run.file.parent).as_posix() for path in run.file.parent.rglob("*") if path.is_file()}
        assert files == {run.file.name}
        assert [path.name for path in run.file.parent.parent.iterdir()] == [run.file.parent.name]
    assert not Path("wandb").exists()


def test_nothing_is_left_in_the_home_folder_or_the_working_folder(cli, tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    done = cli(*TOY[:-2], "steps=2", "tracking=wandb_offline", cwd=work, HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in work.iterdir()] == ["outputs"]
    assert [path for path in home.rglob("*") if path.is_file()] == []


# ---- never a reason to lose a run

TRACKED = f"{' '.join(TOY[:-2])} steps=5 tracking=wandb_offline"


def state(folder: Path) -> tuple[str, int]:
    (run,) = json.loads((folder / "sweep.json").read_text())["runs"]
    status = json.loads((folder / run["dir"] / "status.json").read_text())
    return status["state"], status["steps_done"]


@pytest.fixture
def unknown_version(monkeypatch):
    """A wandb whose file format we do not know: it writes its files itself."""
    monkeypatch.setattr(src.tracking, "FORMAT_KNOWN", ())


@pytest.mark.usefixtures("unknown_version")
def test_an_unknown_version_of_wandb_writes_its_own_files_with_the_same_rows(sweep, tmp_path):
    assert sweep(TRACKED) == 0
    wandb.teardown()
    (run,) = (Mirrored(path.parent) for path in (tmp_path / "s").glob("*/config.json"))
    assert (run.file.parent / "logs").is_dir()
    assert [row["_step"] for row in run.rows] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in run.rows] == run.history["loss"].to_pylist()
    assert run.exit_code == 0


@pytest.mark.usefixtures("unknown_version")
@pytest.mark.parametrize("error", [wandb.Error("no service"), OSError("no space left"), RuntimeError("whatever else")])
def test_a_wandb_that_cannot_start_does_not_stop_training_and_this_is_said(sweep, tmp_path, monkeypatch, caplog, error):
    def init(**kwargs):
        raise error

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        assert sweep(TRACKED) == 0
    assert state(tmp_path / "s") == ("finished", 5)
    assert f"W&B is off for dpo: {type(error).__name__}: {error}" in caplog.text


@pytest.mark.usefixtures("unknown_version")
@pytest.mark.parametrize("method", ["log", "finish"])
def test_a_wandb_that_breaks_while_training_does_not_stop_it_either(sweep, tmp_path, monkeypatch, caplog, method):
    calls = []

    class Broken:
        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    def broken(*args, **kwargs):
        calls.append(args)
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(Broken, method, broken, raising=False)
    monkeypatch.setattr(wandb, "init", lambda **kwargs: Broken())
    assert sweep(TRACKED) == 0
    assert state(tmp_path / "s") == ("finished", 5)
    assert len(calls) == 1
    assert "W&B is off for dpo: ConnectionResetError" in caplog.text


CONFIG = {"id": "8c1f", "sweep": "lr-study", "label": "dpo", "lr": 0.1}
OFFLINE = Wandb(mode="offline", project="p", entity=None)


def rows(first: int, end: int) -> dict[str, np.ndarray]:
    return {"step": np.arange(first, end), "margin": np.arange(first, end) / 7}


def logged(folder: Path) -> list[int]:
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return [row.step.num for row in kinds(records(file), "history")]


def test_a_folder_that_cannot_be_written_is_said_and_training_goes_on(tmp_path, caplog):
    (tmp_path / "wandb").write_text("a file in the way; root may write everywhere")
    tracker = OFFLINE.start(CONFIG, tmp_path)
    tracker.log(rows(0, 5))
    tracker.finish(0)
    assert [record.getMessage()[:20] for record in caplog.records] == ["W&B is off for dpo: "]


def test_a_full_disk_costs_the_mirror_its_later_rows_and_nothing_else(tmp_path, caplog, monkeypatch):
    """/dev/full takes nothing; half of what is written is there when it says so, as on a real disk."""
    tracker = OFFLINE.start(CONFIG, tmp_path)
    tracker.log(rows(0, 5))
    (file,) = tmp_path.glob("wandb/*/*.wandb")
    written = Path.open

    def full(path, mode):
        with written(path, mode) as real:
            real.write(b"half a record")
        return written(Path("/dev/full"), mode, buffering=0)

    monkeypatch.setattr(Path, "open", full)
    tracker.log(rows(5, 10))
    monkeypatch.undo()
    tracker.log(rows(10, 15))
    tracker.finish(0)
    assert [record.getMessage() for record in caplog.records] == [
        "W&B is off for dpo: OSError: [Errno 28] No space left on device"
    ]
    assert logged(tmp_path) == [0, 1, 2, 3, 4]
    assert file.stat().st_size == len(file.read_bytes())


# ---- a run that goes on where it was stopped


def test_the_mirror_of_a_resumed_run_begins_anew_and_has_every_row_once_and_in_order(tmp_path):
    first = OFFLINE.start(CONFIG, tmp_path)
    first.log(rows(0, 8))  # and then the process is killed; the checkpoint is of step 6
    again = OFFLINE.start(CONFIG, tmp_path, 2)
    again.log(rows(0, 6))
    again.log(rows(6, 10))
    again.finish(0)
    assert logged(tmp_path) == list(range(10))
    (file,) = tmp_path.glob("wandb/*/*.wandb")
    (run,) = kinds(records(file), "run")
    assert run.run_id == file.stem.removeprefix("run-")
    assert "-a2" not in run.run_id  # nothing was uploaded under this id
    assert values(run.config.update)["attempt"] == 2


def test_online_a_resumed_run_is_a_run_of_its_own_with_every_row(tmp_path, environment):
    code = """
first = online.start(config, folder)
first.log(rows(0, 8))
again = online.start(config, folder, 2)
again.log(rows(0, 6))
again.log(rows(6, 10))
again.finish(0)
first.finish(1)
"""
    with serving() as server:
        done = online(code, tmp_path, environment | server.environment)
        assert done.returncode == 0, done.stderr
        first, again = (server.runs[id] for id in sorted(server.runs, key=len))
    assert [row["step"] for row in again.history] == list(range(10))
    assert [row["step"] for row in first.history] == list(range(8))
    assert sorted(server.runs, key=len)[1].endswith("-a2")
    assert [run.config["attempt"]["value"] for run in (first, again)] == [1, 2]
    assert again.summary["margin"] == {"max": 9 / 7, "last": 9 / 7}


# ---- evaluations

EVALUATED = "data=notebook_pair data._target_=tests.held_out.one_pair evaluation.every=3 evaluation.samples=2"


def evaluated_run(sweep, folder: Path, steps: int = 7) -> Mirrored:
    toy = "model=tabular tracking=wandb_offline"
    assert sweep(f"{toy} steps={steps} {EVALUATED}") == 0
    return Mirrored(folder / "s" / json.loads((folder / "s" / "sweep.json").read_text())["runs"][0]["dir"])


def test_what_an_evaluation_found_is_in_the_row_of_its_step(sweep, tmp_path):
    mirrored = evaluated_run(sweep, tmp_path)
    rows = mirrored.rows
    assert [row["step"] for row in rows] == [row["_step"] for row in rows] == list(range(8))
    evaluations = pa.ipc.open_stream((mirrored.file.parents[2] / "evaluations.arrow").read_bytes()).read_all()
    assert evaluations["step"].to_pylist() == [0, 3, 6, 7]
    for expected in evaluations.to_pylist():
        found = rows[expected["step"]]
        assert {name: found[name] for name in expected if name in found} == expected
        assert ("loss" in found) == (expected["step"] < 7)  # the last stands after the last update
    assert not any(name.startswith("eval/") for step in (1, 2, 4, 5) for name in rows[step])


def test_the_mirror_of_a_run_that_goes_on_has_its_evaluations_too(sweep, tmp_path):
    before = evaluated_run(sweep, tmp_path)
    folder = before.file.parents[2]
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
    after = evaluated_run(sweep, tmp_path)
    assert json.loads((folder / "status.json").read_text())["attempt"] == 2
    own = ("_timestamp", "_runtime")
    without = [[{k: v for k, v in row.items() if k not in own} for row in run.rows] for run in (before, after)]
    assert without[0] == without[1]


@pytest.mark.usefixtures("unknown_version")
def test_answers_are_a_table_of_wandbs_at_their_step(tmp_path):
    """Through W&B's own process, as online; the server its artifacts want is more than ours is."""
    mirror = Mirror(OFFLINE.start(CONFIG, tmp_path))
    answers = [{"step": 2, "answer": "yes", "k1": 0.5}, {"step": 2, "answer": "no", "k1": 1.5}]
    mirror.log(rows(0, 2))
    mirror.evaluated({"step": np.array([2]), "eval/margin": np.array([0.25])}, answers)
    mirror.log(rows(2, 4))
    mirror.finish(0)
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/*/*.wandb")
    found = [values(row.item) for row in kinds(records(file), "history")]
    assert [row["step"] for row in found] == [0, 1, 2, 3]
    assert [row.get("eval/margin") for row in found] == [None, None, 0.25, None]
    assert [row.get("samples._type") for row in found] == [None, None, "table-file", None]
    table = json.loads((file.parent / "files" / found[2]["samples.path"]).read_text())
    assert table == {"columns": ["step", "answer", "k1"], "data": [[2, "yes", 0.5], [2, "no", 1.5]]}


# ---- W&B's own process in trouble

PROLOGUE = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from src.tracking import Wandb
from src.tracking.service import InBackground

def rows(first, end):
    return {"step": np.arange(first, end), "margin": np.arange(first, end) / 7}

def service():
    # the ids of W&B's processes that this one began
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended since
            continue
        state, parent = rest.split()[:2]
        if name == "wandb-core" and parent == str(os.getpid()) and state != "Z":
            found.append(int(stat.parent.name))
    return found

config, folder = {"id": "8c1f", "sweep": "lr-study", "label": "dpo", "lr": 0.1}, Path(sys.argv[1])
online = Wandb(mode="online", project="p", entity=None)
"""


def online(code: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, so that W&B's can be killed."""
    command = [sys.executable, "-c", PROLOGUE + code, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds W&B's process in /proc")


@needs_proc
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_service_killed_or_stuck_in_mid_run_neither_stops_nor_delays_training(tmp_path, environment, how):
    code = f"""
InBackground.patience = 3.0
trackers = [online.start(config | {{"id": str(n)}}, folder) for n in range(3)]
for tracker in trackers:
    tracker.log(rows(0, 5))
while not service():
    time.sleep(0.1)
time.sleep(2)
os.kill(service()[0], signal.{how})
began = time.monotonic()
for step in range(5, 1000):
    for tracker in trackers:
        tracker.log(rows(step, step + 1))
assert time.monotonic() - began < 1
for tracker in trackers:
    tracker.finish(0)
assert time.monotonic() - began < 10
print("trained")
"""
    began = time.monotonic()
    with serving() as server:
        done = online(code, tmp_path, environment | server.environment)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert done.stderr.count("W&B is off for dpo") == 3
    assert how == "SIGSTOP" or "Traceback" not in done.stderr  # W&B's threads do not take being let go in silence
    assert time.monotonic() - began < 30  # it does not hang at exit either


def test_a_server_that_cannot_be_reached_does_not_hold_up_training(tmp_path, environment):
    code = """
InBackground.patience = 3.0
began = time.monotonic()
tracker = online.start(config, folder)
tracker.log(rows(0, 5))
assert time.monotonic() - began < 1
tracker.finish(0)
assert time.monotonic() - began < 10
print("trained")
"""
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "k" * 40}
    began = time.monotonic()
    done = online(code, tmp_path, environment | nobody)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert time.monotonic() - began < 30  # it does not hang at exit either
    assert done.stderr.count("W&B is off for dpo") == 1


def test_without_an_account_online_training_goes_on_and_says_what_to_do(tmp_path, environment):
    done = online("tracker = online.start(config, folder); tracker.finish(0)", tmp_path, environment)
    assert done.returncode == 0
    assert "W&B is off for dpo: UsageError: No API key configured. Use `wandb login` to log in." in done.stderr


@needs_proc
def test_a_forked_worker_has_a_service_of_its_own(tmp_path, environment):
    """Its parent's ends with the parent, and all runs of the worker with it."""
    code = """
tracker = online.start(config, folder / "parent")
tracker.log(rows(0, 5))
while not service():
    time.sleep(0.1)
pid = os.fork()
if pid == 0:
    worker = online.start(config | {"id": "worker"}, folder / "worker")
    worker.log(rows(0, 5))
    worker.finish(0)
    os._exit(len(service()))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
tracker.log(rows(5, 10))
tracker.finish(0)
"""
    for name in ("parent", "worker"):
        (tmp_path / name).mkdir()
    with serving() as server:
        done = online(code, tmp_path, environment | server.environment)
        assert done.returncode == 0, done.stderr
        assert sorted(len(run.history) for run in server.runs.values()) == [5, 10]


def test_the_wandb_id_tells_two_sweeps_of_the_same_run_apart(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(wandb, "init", lambda **kwargs: given.append(kwargs) or (_ for _ in ()).throw(wandb.Error("x")))
    for sweep in ("lr-study", "lr-study", "beta-study"):
        Wandb(mode="online", project="p", entity=None).start(CONFIG | {"sweep": sweep}, tmp_path).finish(0)
    first, again, other = (kwargs["id"] for kwargs in given)
    assert first == again != other
    assert all(id.startswith("8c1f-") for id in (first, other))
    assert {kwargs["mode"] for kwargs in given} == {"online"}
