"""`python -m src.runs`: what a person sees of the runs on disk, whatever their state, and what may be done to them."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout

from src.launching import locks
from src.runs.__main__ import main
from src.runs.printing import duration
from src.store import RunDirectory, write_json
from tests.conftest import TOY

Tell = Callable[..., str]

ENDS = {
    "finished": {"steps_done": 3},
    "diverged": {"steps_done": 2, "step": 1, "reason": "loss is not finite at step 1"},
    "failed": {"steps_done": 0, "reason": "RuntimeError: on fire", "traceback": "Traceback:\n  on fire\n"},
    "interrupted": {"steps_done": 1, "reason": "stopped"},
}


def rows(n: int) -> dict[str, np.ndarray]:
    return {"step": np.arange(n), "loss": 1 / (1 + np.arange(n)), "nonfinite": np.zeros(n)}


def put(folder: Path, run_id: str, label: str, state: str, history: int = 0, **config: object) -> Path:
    """One run directory as `src.store` writes it, and its entry in sweep.json."""
    directory = RunDirectory(folder / f"{label}-{run_id}")
    if state != "absent":
        plain = {"id": run_id, "label": label, "sweep": folder.name, "steps": 3, **config}
        directory.create(plain, ["-m", "loss=dpo,ipo"])
    if state not in {"planned", "absent"}:
        directory.start({"pairs": 1}, stack=2)
    if history:
        directory.append(rows(history))
    if state in ENDS:
        directory.end(state, **ENDS[state])
    if state == "running":
        directory.end(state)  # closes the file …
        status = json.loads((directory.path / "status.json").read_text())
        del status["ended"]  # … which a process that was killed would not have said
        write_json(directory.path / "status.json", status)
    manifest = {"format": 1, "name": folder.name, "created": "2026-11-21T09:00:00+00:00", "runs": []}
    if (folder / "sweep.json").exists():
        manifest = json.loads((folder / "sweep.json").read_text())
    overrides = [f"loss={config.get('loss', {}).get('name')}", "beta=0.1", f"sweep={folder.name}", "output=x y"]
    manifest["runs"].append({"id": run_id, "label": label, "dir": directory.path.name, "overrides": overrides})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "sweep.json", manifest)
    return directory.path


@pytest.fixture
def states(tmp_path: Path) -> Path:
    """A sweep with a run in every state: the folder."""
    folder = tmp_path / "outputs" / "s"
    dpo, ipo = {"name": "dpo", "beta": 0.1}, {"name": "ipo", "beta": 0.5}
    put(folder, "aa00000001", "dpo_1", "finished", 3, loss=dpo, beta=0.1, save=False)
    put(folder, "aa00000002", "dpo_2", "diverged", 2, loss=dpo, beta=0.1, save=False)
    put(folder, "bb00000003", "ipo_1", "failed", loss=ipo, beta=0.5, save=False)
    put(folder, "cc00000004", "ipo_2", "interrupted", 1, loss=ipo, beta=0.5, save=False)
    put(folder, "dd00000005", "ipo_3", "planned", loss=ipo, beta=0.5, save=True)
    put(folder, "ee00000006", "ipo_4", "running", 2, loss=ipo, beta=0.5, save=True)
    put(folder, "ff00000007", "ipo_5", "absent", loss=ipo)
    return folder


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    """What `python -m src.runs ARGUMENTS` prints; it must end with exit code `code`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("asked"))

    def told(*arguments: str, code: int = 0, stream: str = "out") -> str:
        capsys.readouterr()
        try:
            got = main(arguments)
        except SystemExit as exit:  # argparse
            got = exit.code
        captured = capsys.readouterr()
        assert got == code, captured.err
        return getattr(captured, stream)

    return told


def listed(tell: Tell, *arguments: str) -> dict[str, dict]:
    """Label -> record, of `ls --json`."""
    return {run["label"]: run for run in json.loads(tell("ls", "s", "--json", *arguments))}


def refusal(tell: Tell, *arguments: str) -> str:
    """The one line with which bad input is refused."""
    (line,) = tell(*arguments, code=2, stream="err").splitlines()
    assert line.startswith("runs: ")
    return line


# ---- ls


def test_a_sweep_is_listed_with_one_line_for_each_run_and_a_last_line_that_counts(states, tell):
    header, *lines, last = tell("ls", "s").splitlines()
    assert header.split() == ["label", "id", "state", "steps", "step", "took", "ended", "reason"]
    found = {line.split()[0]: line.split()[1:5] for line in lines}
    assert found["dpo_1"] == ["aa00000001", "finished", "3/3", "-"]
    assert found["dpo_2"] == ["aa00000002", "diverged", "2/3", "1"]
    assert found["ipo_3"] == ["dd00000005", "planned", "-/3", "-"]
    assert found["ipo_5"] == ["ff00000007", "planned", "-/-", "-"]
    assert next(line for line in lines if line.startswith("dpo_2")).rstrip().endswith("loss is not finite at step 1")
    assert last == "7 runs: 2 planned, 1 finished, 1 diverged, 1 failed, 2 interrupted"


def test_without_a_name_every_sweep_is_listed_with_how_many_runs_are_in_each_state(states, tell):
    put(states.parent / "t", "ab00000001", "dpo", "finished")
    header, first, second = tell("ls").splitlines()
    assert header.split() == ["sweep", "runs", "planned", "finished", "diverged", "failed", "interrupted", "age"]
    assert first.split()[:7] == ["s", "7", "2", "1", "1", "1", "2"]
    assert second.split()[:3] == ["t", "1", "1"]
    assert json.loads(tell("ls", "--json"))[1] == {
        "sweep": "t", "folder": "outputs/t", "runs": 1, "states": {"finished": 1},
    }  # fmt: skip


def test_a_folder_without_sweeps_is_not_an_error(tell, tmp_path):
    assert tell("ls") == "no sweeps in outputs\n"
    assert tell("ls", "--output", str(tmp_path)) == f"no sweeps in {tmp_path}\n"


def test_a_sweep_may_be_given_by_its_path(states, tell, tmp_path):
    assert tell("ls", "outputs/s").splitlines()[-1].startswith("7 runs")
    assert tell("ls", str(states)).splitlines()[-1].startswith("7 runs")
    states.parent.rename(tmp_path / "elsewhere")
    assert tell("ls", "s", "--output", "elsewhere").splitlines()[-1].startswith("7 runs")


@pytest.mark.parametrize(
    ("arguments", "labels"),
    [
        (["--state", "failed,diverged"], ["dpo_2", "ipo_1"]),
        (["--state", "interrupted"], ["ipo_2", "ipo_4"]),
        (["--where", "loss=dpo"], ["dpo_1", "dpo_2"]),
        (["--where", "beta=1e-1"], ["dpo_1", "dpo_2"]),
        (["--where", "loss.beta=0.1,0.5", "save=true"], ["ipo_3", "ipo_4"]),
        (["--where", "loss=ipo", "--where", "save=false", "--state", "failed"], ["ipo_1"]),
        (["--where", "loss=dpo", "beta=0.5"], []),
    ],
)
def test_filters_leave_the_runs_that_pass_all_of_them(states, tell, arguments, labels):
    assert list(listed(tell, *arguments)) == labels


def test_filters_also_work_on_the_counts_of_all_sweeps(states, tell):
    put(states.parent / "t", "ab00000001", "dpo", "finished", loss={"name": "dpo"})
    told = json.loads(tell("ls", "--json", "--where", "loss=dpo"))
    assert [sweep["states"] for sweep in told] == [{"finished": 1, "diverged": 1}, {"finished": 1}]


def test_two_sweeps_in_one_table_are_told_apart(states, tell):
    put(states.parent / "t", "ab00000001", "dpo", "finished")
    header, *lines, last = tell("ls", "s", "t").splitlines()
    assert header.split()[0] == "sweep"
    assert [line.split()[0] for line in lines] == ["s"] * 7 + ["t"]
    assert last.startswith("8 runs")


def test_times_are_told_with_their_largest_unit():
    given = [None, 0.04, 1.0, 59.0, 90.0, 7200.0, 36 * 3600.0, -5.0]
    assert [duration(s) for s in given] == ["-", "0.0 s", "1.0 s", "59 s", "1.5 min", "2.0 h", "1.5 d", "-5.0 s"]


# ---- a run that was killed, and one that goes on


def test_a_run_that_says_running_while_nobody_holds_its_lock_is_interrupted_and_this_is_not_written(states, tell):
    before = (states / "ipo_4-ee00000006" / "status.json").read_bytes()
    killed = listed(tell)["ipo_4"]
    assert (killed["state"], killed["steps_done"]) == ("interrupted", 2)
    assert "no process holds its lock" in killed["reason"]
    assert killed["seconds"] is None
    assert (states / "ipo_4-ee00000006" / "status.json").read_bytes() == before


def test_while_its_lock_is_held_it_runs_and_its_rows_are_counted_as_they_come(states, tell):
    lock = locks.acquire(states, "ee00000006")
    running = listed(tell)["ipo_4"]
    assert (running["state"], running["steps_done"], running["reason"]) == ("running", 2, None)
    assert 0 <= running["seconds"] < 60
    lock.release()
    assert listed(tell)["ipo_4"]["state"] == "interrupted"


def test_a_lock_is_one_process_s_until_it_is_released(tmp_path):
    lock = locks.acquire(tmp_path, "x")
    assert locks.acquire(tmp_path, "x") is None
    other = locks.acquire(tmp_path, "y")
    assert (locks.held(tmp_path, "x"), locks.held(tmp_path, "y"), locks.held(tmp_path, "z")) == (True, True, False)
    lock.release()
    assert not locks.held(tmp_path, "x")
    again = locks.acquire(tmp_path, "x")
    assert again is not None
    again.release()
    other.release()


def test_looking_at_a_lock_neither_takes_it_nor_creates_anything(tmp_path):
    assert not locks.held(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
    locks.acquire(tmp_path, "x").release()
    for _ in range(3):
        assert not locks.held(tmp_path, "x")


def test_looking_at_a_lock_needs_no_right_to_write(tmp_path, monkeypatch):
    lock = locks.acquire(tmp_path, "x")
    opened, flags = os.open, []
    monkeypatch.setattr(os, "open", lambda path, how, *rest: (flags.append(how), opened(path, how, *rest))[1])
    assert locks.held(tmp_path, "x")
    assert flags == [os.O_RDONLY]
    monkeypatch.undo()
    lock.release()


def test_kill_9_frees_a_lock(tmp_path, environment):
    hold = f"from pathlib import Path; from src.launching import locks; l = locks.acquire(Path({str(tmp_path)!r}), 'x')"
    program = f"{hold}; print(flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert locks.held(tmp_path, "x")
    assert locks.acquire(tmp_path, "x") is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not locks.held(tmp_path, "x")
    locks.acquire(tmp_path, "x").release()


# ---- folders that are not what they should be


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("status.json", None, "status.json is missing"),
        ("status.json", '{"format": 1, "sta', "status.json cannot be read"),
        ("status.json", "[]", "status.json is not of format 1"),
        ("status.json", '{"format": 1, "state": "gone"}', "state 'gone'"),
        ("config.json", None, "config.json is missing"),
        ("config.json", '{"format": 1, "id": "zz"}', "id 'zz'"),
        ("config.json", '{"format": 2}', "config.json is not of format 1"),
    ],
)
def test_a_half_written_or_foreign_run_is_named_in_one_line_and_the_others_are_listed(
    states, tell, file, content, said
):
    path = states / "dpo_1-aa00000001" / file
    path.unlink() if content is None else path.write_text(content)
    (line,) = tell("ls", "s", stream="err").splitlines()
    assert line.startswith("runs: outputs/s/dpo_1-aa00000001: ")
    assert said in line
    runs = listed(tell)
    assert runs["dpo_1"]["state"] == "unreadable"
    assert runs["dpo_2"]["state"] == "diverged"


def test_a_run_whose_files_are_being_written_at_this_moment_is_planned(states, tell):
    (states / "dpo_1-aa00000001" / "status.json").unlink()
    lock = locks.acquire(states, "aa00000001")
    assert listed(tell)["dpo_1"]["state"] == "planned"
    assert tell("ls", "s", stream="err") == ""
    lock.release()


def test_a_run_directory_that_sweep_json_does_not_name_is_named_and_other_folders_are_left_in_peace(states, tell):
    (states / "figures").mkdir()
    (states / "mine").mkdir()
    (states / "mine" / "config.json").write_text("{}")
    (line,) = tell("ls", "s", stream="err").splitlines()
    assert line == "runs: outputs/s/mine: a run directory that sweep.json does not name"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 99, "runs": []}', '{"format": 1}', "dir: .."])
def test_a_folder_that_is_no_sweep_is_named_in_one_line_beside_the_sweeps(states, tell, content):
    other = states.parent / "other"
    other.mkdir()
    if content == "dir: ..":
        entry = {"id": "x", "label": "x", "dir": "../s", "overrides": []}
        content = json.dumps({"format": 1, "runs": [entry]})
    if content is not None:
        (other / "sweep.json").write_text(content)
    (line,) = tell("ls", stream="err").splitlines()
    assert line.startswith("runs: outputs/other: sweep.json")
    assert [line.split()[0] for line in tell("ls").splitlines()] == ["sweep", "s"]
    assert "sweep" in refusal(tell, "ls", "other")


def test_a_history_that_was_cut_off_counts_up_to_the_last_whole_batch(states, tell):
    file = states / "ipo_4-ee00000006" / "history.arrow"
    file.write_bytes(file.read_bytes()[:-40])
    assert listed(tell)["ipo_4"]["steps_done"] in {0, 2}
    file.write_bytes(b"something else")
    assert listed(tell)["ipo_4"]["steps_done"] == 0


# ---- show


@pytest.mark.parametrize("name", ["bb00000003", "bb", "ipo_1"])
def test_a_run_is_named_by_its_id_a_beginning_of_it_or_its_label(states, tell, name):
    assert tell("show", "s", name).startswith("run ipo_1\n")


def test_show_tells_everything_about_a_run(states, tell):
    told = tell("show", "s", "dpo_2")
    sections = {part.split("\n")[0]: part.split("\n")[1:] for part in told.strip().split("\n\n")}
    assert list(sections) == [
        "run dpo_2", "differs from the defaults in", "status", "data", "last of 2 rows", "provenance", "configuration",
        "alone again",
    ]  # fmt: skip
    assert [line.split() for line in sections["differs from the defaults in"]] == [["loss", "dpo"], ["beta", "0.1"]]
    assert ["state", "diverged"] in [line.split() for line in sections["status"]]
    assert ["loss", "0.5"] in [line.split() for line in sections["last of 2 rows"]]
    assert ["loss.name", "dpo"] in [line.split() for line in sections["configuration"]]
    assert sections["alone again"] == ["  python -m src.run loss=dpo beta=0.1"]


def test_show_ends_with_the_traceback_where_there_is_one(states, tell):
    assert tell("show", "s", "ipo_1").endswith("traceback\nTraceback:\n  on fire\n")
    assert "traceback" not in tell("show", "s", "dpo_1")


def test_show_says_the_same_in_json(states, tell):
    told = json.loads(tell("show", "s", "dpo_1", "--json"))
    assert (told["state"], told["rows"], told["last"]["step"]) == ("finished", 3, 2)
    assert told["config"]["loss"] == {"name": "dpo", "beta": 0.1}
    assert told["command"] == "python -m src.run loss=dpo beta=0.1"


def test_show_of_a_run_that_has_no_folder_yet(states, tell):
    assert "planned" in tell("show", "s", "ipo_5")


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ls", "nosuch"], "nosuch: no such sweep; outputs has s"),
        (["ls", "s", "--state", "broken"], "--state broken"),
        (["ls", "s", "--where", "loss"], "--where loss: give key=value"),
        (["ls", "s", "--where", "los=dpo"], "--where los=…: no run has this key; there are beta"),
        (["show", "s", "nosuch"], "nosuch: no such run; there are dpo_1 (aa00000001)"),
        (["show", "s", "aa"], "aa: fits 2 runs; give more of the id: aa00000001, aa00000002"),
        (["show", "s", ""], "no such run"),
        (["show", "s"], "RUN"),
        (["rerun", "s", "dpo_1"], "dpo_1: finished; --force"),
        (["rerun", "s", "dpo_1", "dpo_2"], "dpo_1, dpo_2: finished and diverged; --force"),
        (["rerun", "s", "nosuch"], "nosuch: no such run"),
        (["rm", "s", "nosuch"], "nosuch: no such run"),
        (["rm"], "SWEEP"),
        (["list"], "invalid choice: 'list'"),
        ([], "ls | show | rerun | rm"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_changed(states, tell, arguments, named):
    before = {path: path.stat().st_mtime_ns for path in states.rglob("*")}
    assert named in refusal(tell, *arguments)
    assert {path: path.stat().st_mtime_ns for path in states.rglob("*")} == before


# ---- rm


def test_rm_removes_the_run_directories_and_their_entries_and_nothing_else(states, tell):
    others = {path for path in states.rglob("*") if path.parent.name in {"dpo_1-aa00000001", "ipo_3-dd00000005"}}
    told = tell("rm", "s", "--state", "failed,diverged,interrupted", "--yes")
    assert told == "removed 4 runs: 1 diverged, 1 failed, 2 interrupted of outputs/s\n"
    entries = json.loads((states / "sweep.json").read_text())["runs"]
    assert [entry["label"] for entry in entries] == ["dpo_1", "ipo_3", "ipo_5"]
    assert {path.name for path in states.glob("[!.]*")} == {"sweep.json", "dpo_1-aa00000001", "ipo_3-dd00000005"}
    assert all(path.exists() for path in others)


def test_rm_asks_first_and_takes_only_yes_for_an_answer(states, tell, monkeypatch):
    asked = []
    for answer in ("n", "", "yess"):
        monkeypatch.setattr("builtins.input", lambda question, a=answer: (asked.append(question), a)[1])
        assert tell("rm", "s", "dpo_1", code=1) == "nothing removed\n"
    assert asked == ["remove 1 run: 1 finished of outputs/s? [y/N] "] * 3
    monkeypatch.setattr("builtins.input", lambda question: (_ for _ in ()).throw(EOFError))
    assert tell("rm", "s", "dpo_1", code=1).endswith("nothing removed\n")
    assert (states / "dpo_1-aa00000001").is_dir()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    tell("rm", "s", "dpo_1")
    assert not (states / "dpo_1-aa00000001").exists()


def test_rm_refuses_when_one_of_the_runs_is_being_trained_and_removes_none(states, tell):
    lock = locks.acquire(states, "ee00000006")
    assert "ipo_4: being trained" in refusal(tell, "rm", "s", "--yes")
    assert len(listed(tell)) == 7
    lock.release()


def test_rm_leaves_a_run_alone_that_somebody_began_to_train_in_the_meantime(states, tell, monkeypatch):
    lock = locks.acquire(states, "ee00000006")
    monkeypatch.setattr(locks, "held", lambda sweep, run_id: False)
    assert tell("rm", "s", "ipo_3", "ipo_4", "--yes", code=1).startswith("removed 1 of 2 runs")
    assert list(listed(tell))[-2:] == ["ipo_4", "ipo_5"]
    assert (states / "ipo_4-ee00000006" / "history.arrow").exists()
    lock.release()


def test_with_its_last_run_a_sweep_is_gone_but_not_what_else_lies_in_its_folder(states, tell):
    (states / "figures").mkdir()
    tell("rm", "s", "--yes")
    assert [path.name for path in states.iterdir()] == ["figures"]
    put(states.parent / "t", "ab00000001", "dpo", "finished")
    tell("rm", "t", "--yes")
    assert not (states.parent / "t").exists()


def test_rm_keeps_runs_that_were_added_to_the_sweep_while_it_removed_others(states, tell, monkeypatch):
    removed = shutil.rmtree

    def grow(path, *args, **kwargs):
        put(states, "ab00000009", "new", "planned")
        removed(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", grow)
    tell("rm", "s", "dpo_1", "--yes")
    assert [entry["label"] for entry in json.loads((states / "sweep.json").read_text())["runs"]][-1] == "new"


def test_only_one_process_at_a_time_may_change_sweep_json(states, tell, monkeypatch):
    with locks.sweep_lock(states), pytest.raises(Timeout):
        FileLock(states / ".locks" / "sweep.json").acquire(timeout=0)
    written = []
    monkeypatch.setattr("src.runs.changing.write_json", lambda *args: written.append(locks.held(states, "sweep.json")))
    tell("rm", "s", "dpo_1", "--yes")
    assert written == [True]


def test_rm_also_removes_what_cannot_be_read(states, tell):
    (states / "dpo_1-aa00000001" / "status.json").write_text("{")
    tell("rm", "s", "--state", "unreadable", "--yes")
    assert not (states / "dpo_1-aa00000001").exists()
    assert "dpo_1" not in listed(tell)


def test_rm_of_nothing_says_so(states, tell):
    assert tell("rm", "s", "--state", "running", "--yes").startswith("outputs/s: no such runs (7 runs: ")


# ---- rerun, of real runs


@pytest.fixture
def trained(sweep, tmp_path: Path) -> dict[str, Path]:
    """Label -> folder of three real runs, in outputs/s; one of them diverges."""
    cells = [f"{' '.join(TOY)} {more}" for more in ("loss=dpo lr=0.1", "loss=ipo lr=0.1", "loss=ipo lr=1e30")]
    sweep(*cells, output=tmp_path / "outputs")
    entries = json.loads((tmp_path / "outputs" / "s" / "sweep.json").read_text())["runs"]
    return {entry["label"]: tmp_path / "outputs" / "s" / entry["dir"] for entry in entries}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rerun_trains_what_was_interrupted_in_its_own_folder_and_touches_nothing_else(trained, tell, tmp_path):
    one, other, _ = trained.values()
    history, untouched = (one / "history.arrow").read_bytes(), files(other)
    entries = json.loads((tmp_path / "outputs" / "s" / "sweep.json").read_text())["runs"]
    write_json(one / "status.json", {"format": 1, "state": "running"})  # and nobody holds its lock
    (one / "history.arrow").write_bytes(history[:1500])
    tell("rerun", "s")
    assert json.loads((one / "status.json").read_text())["state"] == "finished"
    assert (one / "history.arrow").read_bytes() == history
    assert files(other) == untouched
    assert json.loads((tmp_path / "outputs" / "s" / "sweep.json").read_text())["runs"] == entries
    assert {path.name for path in (tmp_path / "outputs" / "s").glob("[!.]*")} == {
        "sweep.json", *(path.name for path in trained.values()),
    }  # fmt: skip


def test_rerun_has_nothing_to_do_where_all_have_ended(trained, tell):
    assert tell("rerun", "s") == "outputs/s: nothing to train again (3 runs: 2 finished, 1 diverged)\n"


def test_rerun_of_a_run_that_ended_needs_force_and_says_what_it_removes(trained, tell):
    folder = next(iter(trained.values()))
    history = (folder / "history.arrow").read_bytes()
    (folder / "policy").mkdir()
    told = tell("rerun", "s", next(iter(trained)), "--force")
    assert told.startswith(f"{next(iter(trained))}: results removed (finished after 5 updates)\n")
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["attempt"]) == ("finished", 2)
    assert (folder / "history.arrow").read_bytes() == history
    assert not (folder / "policy").exists()


def test_rerun_trains_runs_together_that_were_launched_differently(sweep, tell, tmp_path):
    for more in ("loss=dpo launcher.processes=1", "loss=ipo launcher.checkpoint_steps=7"):
        sweep(f"{' '.join(TOY)} {more}", output=tmp_path / "outputs")
    for status in tmp_path.glob("outputs/s/*/status.json"):
        write_json(status, {"format": 1, "state": "failed"})
    tell("rerun", "s")
    assert {run["state"] for run in listed(tell).values()} == {"finished"}


def test_rerun_refuses_a_run_that_is_being_trained(trained, tell, tmp_path):
    run_id = next(iter(trained.values())).name[-10:]
    lock = locks.acquire(tmp_path / "outputs" / "s", run_id)
    assert "being trained" in refusal(tell, "rerun", "s", run_id, "--force")
    lock.release()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss=dpo", "steps=4", *TOY[:-1]], "its overrides now make run"),
        (["loss=gone"], "cannot be composed any more"),
        (["loss=dpo", "loss.gone=1"], "gone"),
    ],
)
def test_rerun_refuses_overrides_that_no_longer_make_this_run_before_anything_is_removed(
    trained, tell, tmp_path, overrides, said
):
    file = tmp_path / "outputs" / "s" / "sweep.json"
    manifest = json.loads(file.read_text())
    manifest["runs"][0]["overrides"] = overrides
    write_json(file, manifest)
    folder = next(iter(trained.values()))
    before = files(folder)
    assert said in refusal(tell, "rerun", "s", manifest["runs"][0]["id"], "--force")
    assert files(folder) == before


def test_the_command_that_show_gives_makes_the_very_same_run(trained, tell, convert):
    for folder in trained.values():
        shown = json.loads(tell("show", "s", folder.name[-10:], "--json"))
        python, m, module, *overrides = shlex.split(shown["command"])
        assert (python, m, module) == ("python", "-m", "src.run")
        assert convert(*overrides).id == shown["id"]


# ---- as a program


def test_listing_does_not_wait_for_torch_or_hydra(states, environment):
    command = [sys.executable, "-X", "importtime", "-m", "src.runs", "ls", "s"]
    done = subprocess.run(command, cwd=states.parents[1], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "src.runs.reading" in imported
    assert not imported & {"torch", "hydra", "wandb", "transformers", "pandas", "src.config"}


def test_output_to_a_pipe_is_not_cut_and_has_no_colours(states, environment):
    put(states, "ab00000009", "x" * 200, "failed")
    done = subprocess.run(
        [sys.executable, "-m", "src.runs", "ls", "s"], cwd=states.parents[1], env=environment, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert "x" * 200 + "  ab00000009" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_reader_that_closes_the_pipe_early_is_no_error(states, environment):
    shell = f"{sys.executable} -m src.runs show s dpo_1 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=states.parents[1], env=environment, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.slow
def test_two_thousand_runs_are_listed_in_seconds_start_to_end(tmp_path, environment):
    folder = tmp_path / "outputs" / "s"
    first = put(folder, "00000000aa", "dpo", "finished", 3, loss={"name": "dpo"})
    config, status = (json.loads((first / name).read_text()) for name in ("config.json", "status.json"))
    runs = []
    for i in range(2000):
        run = {"id": f"{i:010x}", "label": f"dpo_seed{i}", "dir": f"dpo_seed{i}-{i:010x}", "overrides": []}
        (folder / run["dir"]).mkdir()
        (folder / run["dir"] / "config.json").write_text(json.dumps(config | {"id": run["id"]}))
        (folder / run["dir"] / "status.json").write_text(json.dumps(status))
        runs.append(run)
    write_json(folder / "sweep.json", {"format": 1, "name": "s", "runs": runs})
    command = [sys.executable, "-m", "src.runs", "ls", "s"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # processor time: what else the machine does is not ours
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert done.stdout.splitlines()[-1] == "2000 runs: 2000 finished"
    assert len(done.stdout.splitlines()) == 2002


def test_help_explains_every_command(environment, tmp_path):
    for arguments in ([], ["ls"], ["show"], ["rerun"], ["rm"]):
        command = [sys.executable, "-m", "src.runs", *arguments, "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout) > 200
