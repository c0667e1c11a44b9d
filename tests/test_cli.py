"""What a person at the terminal sees, and what is on disk afterwards, whatever happens in between."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from src.errors import BadInput
from src.launching import work
from tests.conftest import CONF, TOY

ENDLESS = (*TOY[:-1], "steps=100000000")


def manifest(folder: Path) -> list[dict]:
    return json.loads((folder / "sweep.json").read_text())["runs"]


def status_of(folder: Path) -> dict[str, dict]:
    """Label -> status.json."""
    return {run["label"]: json.loads((folder / run["dir"] / "status.json").read_text()) for run in manifest(folder)}


def steps_in(history: Path) -> list[int]:
    """The steps of every whole record batch."""
    steps: list[int] = []
    try:
        stream = pa.ipc.open_stream(history.read_bytes())
        while True:
            steps += stream.read_next_batch()["step"].to_pylist()
    except (StopIteration, pa.ArrowInvalid, OSError):
        return steps


# ---- what can be asked before training


def test_help_lists_groups_and_defaults_and_does_not_wait_for_torch(cli, tmp_path):
    done = cli("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    for group in CONF.glob("*/"):
        choices = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        assert f"{group.name}: {choices}\n" in done.stdout
    assert "beta: 0.1" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "wandb", "transformers", "pandas"}


def test_cfg_job_prints_the_composed_configuration(cli, tmp_path):
    done = cli("--cfg", "job", "loss=ipo", "beta=0.5", cwd=tmp_path)
    assert done.returncode == 0
    assert "beta: 0.5\n" in done.stdout
    assert "name: ipo\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_shell_completes_groups_choices_and_parameters(environment, tmp_path):
    """Through bash itself, for the command `margincall` (which is `python -m src.run` by another name)."""
    command = tmp_path / "margincall"
    program = "import sys; sys.argv[0] = 'margincall'; from src.run import cli; cli()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}" "$@"\n')
    command.chmod(0o755)
    script = 'eval "$(margincall -sc install=bash)"\n' + "".join(
        f'COMP_LINE="margincall {typed}"; COMP_POINT=${{#COMP_LINE}}; COMP_CWORD=1\n'
        f'hydra_bash_completion; echo "${{COMPREPLY[@]}}"\n'
        for typed in ("loss=", "optimizer=ad", "loss.")
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=environment | {"PATH": path}, capture_output=True, text=True, timeout=60
    )
    losses, optimizers, parameters = (line.split() for line in done.stdout.splitlines())
    assert set(losses) == {f"loss={path.stem}" for path in (CONF / "loss").glob("*.yaml")} >= {"loss=dpo", "loss=ipo"}
    assert optimizers == ["optimizer=adam", "optimizer=adamw"]
    assert "loss.beta=" in parameters


# ---- a sweep, and the same sweep again


SWEEP = ("-m", "loss=dpo,ipo", "lr=0.1,1e30,0.1", "sweep=s", "launcher.processes=2", *TOY)


@pytest.fixture(scope="module")
def swept(cli, tmp_path_factory) -> dict:
    """Six cells that ask for four runs, of which one diverges; then the same command again."""
    cwd = tmp_path_factory.mktemp("swept")
    folder = cwd / "outputs" / "s"
    first = cli(*SWEEP, cwd=cwd, PYTHONHASHSEED="7")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    second = cli(*SWEEP, cwd=cwd)
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    return {"cwd": cwd, "folder": folder, "first": first, "second": second, "before": before, "after": after}


def test_a_sweep_leaves_one_directory_for_each_run_and_nothing_else(swept):
    runs = manifest(swept["folder"])
    assert [run["label"] for run in runs] == ["dpo_lr0.1", "dpo_lr1e+30", "ipo_lr0.1", "ipo_lr1e+30"]
    assert {path.name for path in swept["folder"].iterdir()} == {"sweep.json", ".locks", *(run["dir"] for run in runs)}
    assert [path.name for path in swept["cwd"].iterdir()] == ["outputs"]
    for run in runs:
        files = {path.name for path in (swept["folder"] / run["dir"]).iterdir()}
        assert files == {"config.json", "provenance.json", "data.json", "status.json", "history.arrow"}


def test_an_id_is_the_same_in_every_process(swept, convert):
    for run in manifest(swept["folder"]):
        assert run["id"] == convert(*run["overrides"]).id
        assert run["dir"] == f"{run['label']}-{run['id']}"


def test_cells_that_ask_for_the_same_run_are_trained_once_and_this_is_said(swept):
    assert "4 runs in 2 stacks" in swept["first"].stdout  # one for each of two processes
    assert "2 cells ask for a run another cell already asks for" in swept["first"].stdout
    assert all(status["stack"] == 2 for status in status_of(swept["folder"]).values())


def test_a_diverged_run_is_a_result_and_no_failure(swept):
    assert swept["first"].returncode == 0
    status = status_of(swept["folder"])["ipo_lr1e+30"]
    assert (status["state"], status["steps_done"]) == ("diverged", status["step"] + 1)
    assert "not finite" in status["reason"]
    (line,) = [line for line in swept["first"].stdout.splitlines() if line.startswith("ipo_lr1e+30")]
    assert "diverged" in line
    assert f"step {status['step']}" in line


def test_every_run_is_reported_and_the_last_line_says_how_to_get_figures(swept):
    *_, last = lines = swept["first"].stdout.splitlines()
    assert {line.split(":")[0] for line in lines} >= {"dpo_lr0.1", "dpo_lr1e+30", "ipo_lr0.1", "ipo_lr1e+30"}
    assert last == "outputs/s: 3 finished, 1 diverged. Figures: python -m analysis outputs/s"


def test_output_that_is_not_a_terminal_gets_plain_lines(swept):
    for done in (swept["first"], swept["second"]):
        assert "\x1b" not in done.stdout
        assert "\r" not in done.stdout
        assert done.stderr == ""


def test_the_same_command_again_does_nothing_and_says_so(swept):
    assert swept["second"].returncode == 0
    assert "0 runs in 0 stacks; 4 already finished" in swept["second"].stdout
    assert swept["after"] == swept["before"]
    assert len(manifest(swept["folder"])) == 4


# ---- what is missing is made up for


def test_a_run_that_was_killed_is_done_again_and_the_finished_ones_are_not(sweep, tmp_path):
    cells = [f"{' '.join(TOY)} loss={loss}" for loss in ("dpo", "ipo")]
    sweep(*cells)
    killed, finished = (tmp_path / "s" / run["dir"] for run in manifest(tmp_path / "s"))
    (killed / "status.json").write_text(json.dumps({"format": 1, "state": "running"}))
    (killed / "history.arrow").write_bytes((killed / "history.arrow").read_bytes()[:1500])
    untouched = (finished / "history.arrow").stat().st_mtime_ns
    assert sweep(*cells) == 0
    assert {status["state"] for status in status_of(tmp_path / "s").values()} == {"finished"}
    assert steps_in(killed / "history.arrow") == [0, 1, 2, 3, 4]
    assert (finished / "history.arrow").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("state", ["planned", "failed", "interrupted"])
def test_so_is_a_run_that_never_began_or_did_not_end_by_itself(sweep, tmp_path, state):
    sweep(" ".join(TOY))
    (run,) = manifest(tmp_path / "s")
    status = tmp_path / "s" / run["dir"] / "status.json"
    status.write_text(json.dumps({"format": 1, "state": state}))
    assert sweep(" ".join(TOY)) == 0
    assert json.loads(status.read_text())["state"] == "finished"


def test_a_named_sweep_grows_and_keeps_the_runs_it_had(sweep, tmp_path):
    sweep(f"{' '.join(TOY)} loss=dpo")
    sweep(f"{' '.join(TOY)} loss=ipo")
    assert [run["label"] for run in manifest(tmp_path / "s")] == ["dpo", "ipo"]


# ---- failures


def fail_for(monkeypatch, broken: str) -> None:
    """Let the stack with loss `broken` raise when it trains."""
    train = work.train_stack

    def sabotaged(runs, *args, **kwargs):
        if any(run.loss.name == broken for run in runs):
            raise RuntimeError("the disk\nis on fire")
        return train(runs, *args, **kwargs)

    monkeypatch.setattr(work, "train_stack", sabotaged)


def test_a_stack_that_fails_does_not_stop_the_sweep_and_the_exit_code_is_1(sweep, tmp_path, monkeypatch, capsys):
    fail_for(monkeypatch, "dpo")
    toy = f"{' '.join(TOY)} compute.stack_size=1"
    assert sweep(f"{toy} loss=dpo", f"{toy} loss=ipo") == 1
    status = status_of(tmp_path / "s")
    assert status["ipo"]["state"] == "finished"
    assert (status["dpo"]["state"], status["dpo"]["reason"]) == ("failed", "RuntimeError: the disk is on fire")
    assert status["dpo"]["traceback"].startswith("Traceback")
    assert "in sabotaged" in status["dpo"]["traceback"]
    printed = capsys.readouterr().out
    assert "dpo: failed: RuntimeError: the disk is on fire" in printed
    assert "1 failed, 1 finished" in printed


def test_a_failure_of_one_run_is_recorded_for_every_run_of_its_stack(sweep, tmp_path, monkeypatch):
    fail_for(monkeypatch, "dpo")
    assert sweep(f"{' '.join(TOY)} loss=dpo", f"{' '.join(TOY)} loss=ipo") == 1
    assert {status["state"] for status in status_of(tmp_path / "s").values()} == {"failed"}


def test_a_run_that_failed_is_tried_again(sweep, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        fail_for(broken, "dpo")
        assert sweep(" ".join(TOY)) == 1
    assert sweep(" ".join(TOY)) == 0
    assert status_of(tmp_path / "s")["dpo"].keys().isdisjoint({"traceback"})


# ---- places that cannot be written


def test_an_output_folder_that_is_a_file_is_refused_and_left_alone(sweep, tmp_path):
    (tmp_path / "outputs").write_text("mine")
    with pytest.raises(BadInput, match="outputs/s"):
        sweep(" ".join(TOY), output=tmp_path / "outputs")
    assert (tmp_path / "outputs").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(sweep, tmp_path, monkeypatch):
    def denied(path: Path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(BadInput, match=re.escape(str(tmp_path / "s")) + ".*Permission denied"):
        sweep(" ".join(TOY))


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99, "runs": []}', '{"format": 1}'])
def test_a_sweep_json_that_is_not_ours_is_refused_and_left_alone(sweep, tmp_path, content):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text(content)
    with pytest.raises(BadInput, match=re.escape(str(tmp_path / "s"))):
        sweep(" ".join(TOY))
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["sweep.json"]
    assert (tmp_path / "s" / "sweep.json").read_text() == content


def test_a_file_in_the_place_of_a_run_directory_is_refused_and_left_alone(sweep, tmp_path, convert):
    occupied = tmp_path / "s" / f"dpo-{convert(*TOY).id}"
    occupied.parent.mkdir()
    occupied.write_text("mine")
    with pytest.raises(BadInput, match=occupied.name):
        sweep(" ".join(TOY))
    assert occupied.read_text() == "mine"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [("model.hidden_size=10 tracking=none", "hidden_size=10"), ("model.vocab_size=8 tracking=none", "vocab_size=8"),
     ("model=tabular data=synthetic logps=notebook_per_token", "logps=sequence"),
     ("data=jsonl data.path=x model=tabular", "no tokenizer")],
)  # fmt: skip
def test_a_model_or_data_that_cannot_work_is_refused_before_anything_is_created(sweep, tmp_path, overrides, named):
    with pytest.raises(BadInput, match=named):
        sweep(overrides)
    assert list(tmp_path.iterdir()) == []


def test_the_cells_of_a_sweep_share_one_output_and_one_machine(compose, sweep, tmp_path):
    from src.launching.jobs import run_jobs

    jobs = [(compose(*TOY, f"output={tmp_path / name}"), ()) for name in "ab"]
    with pytest.raises(BadInput, match="output"):
        run_jobs(jobs)
    with pytest.raises(BadInput, match="compute"):
        sweep(f"{' '.join(TOY)} seed=1", f"{' '.join(TOY)} seed=2 compute.threads=2")
    assert list(tmp_path.iterdir()) == []


# ---- breaking in


def start(environment, cwd: Path) -> tuple[subprocess.Popen[str], Path]:
    """An endless run that has flushed its first rows."""
    command = [sys.executable, "-m", "src.run", *ENDLESS, "sweep=s"]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        histories = list(cwd.glob("outputs/s/*/history.arrow"))
        if histories and steps_in(histories[0]):
            return process, histories[0].parent
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"no row was written: {process.communicate()}")


def test_after_ctrl_c_the_rows_are_there_and_the_last_line_says_how_to_go_on(environment, tmp_path):
    process, directory = start(environment, tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert "the same command goes on from here" in out.splitlines()[-1]
    status = json.loads((directory / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert steps_in(directory / "history.arrow") == list(range(status["steps_done"]))
    assert status["steps_done"] > 0


@pytest.mark.slow
def test_after_kill_9_the_rows_are_there_up_to_the_last_flush_and_the_run_says_it_was_running(environment, tmp_path):
    process, directory = start(environment, tmp_path)
    process.kill()
    process.communicate(timeout=30)
    assert json.loads((directory / "status.json").read_text())["state"] == "running"
    steps = steps_in(directory / "history.arrow")
    assert steps == list(range(len(steps)))
    assert len(steps) > 0


# ---- on a terminal


def test_on_a_terminal_there_is_a_live_display_and_it_ends_with_the_summary(environment, tmp_path):
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "src.run", *TOY[:-1], "steps=1500", "sweep=s"]
    env = environment | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(main, 65536):
            shown += chunk
    except OSError:  # what Linux says when the other end has been closed
        pass
    os.close(main)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert b"\x1b[" in shown
    assert "margin h" in text
    assert "run-steps/s" in text
    assert text.strip().splitlines()[-1].endswith("1 finished. Figures: python -m analysis outputs/s")
    assert "Traceback" not in text
