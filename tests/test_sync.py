"""`python -m src.sync`: what it uploads, what it leaves alone, and that it can be interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import src.sync
from src.tracking import Wandb
from tests.wandb_server import Server, serving

STATES = ("finished", "diverged", "running", "failed", "finished")


def make(folder: Path, states: tuple[str, ...] = STATES, untracked: int = 0) -> Path:
    """A sweep with a run for each state, of which the last `untracked` have no offline files."""
    runs = []
    for n, state in enumerate(states):
        run = {"id": f"{n:010}", "label": f"run{n}", "dir": f"run{n}-{n:010}", "overrides": []}
        runs.append(run)
        path = folder / run["dir"]
        path.mkdir(parents=True)
        config = {"format": 1, "id": run["id"], "label": run["label"], "sweep": folder.name, "steps": 10}
        (path / "config.json").write_text(json.dumps(config))
        (path / "status.json").write_text(json.dumps({"format": 1, "state": state}))
        if n < len(states) - untracked:
            tracker = Wandb(mode="offline", project="p", entity=None).start(config, path)
            tracker.log({"step": np.arange(10), "margin": np.arange(10) * 1.5 + n})
            tracker.finish(0)
    command = {"format": 1, "name": folder.name, "command": [], "created": "2026-11-21T09:00:00+00:00", "runs": runs}
    (folder / "sweep.json").write_text(json.dumps(command))
    return folder


def start(environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "src.sync", *map(str, arguments)]
    pipe = subprocess.PIPE
    own = {"env": environment, "cwd": environment["HOME"], "start_new_session": True}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **own)


def sync(environment: dict[str, str], *arguments: object) -> tuple[int, str, str]:
    process = start(environment, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def margins(server: Server) -> dict[str, list[float]]:
    return {run.about["displayName"]: [row["margin"] for row in run.history] for run in server.runs.values()}


def expected(*runs: int) -> dict[str, list[float]]:
    return {f"run{n}": (np.arange(10) * 1.5 + n).tolist() for n in runs}


def test_what_has_ended_is_uploaded_once_and_the_rest_is_counted(tmp_path, environment):
    folder = make(tmp_path / "s", untracked=1)
    with serving() as server:
        code, out, err = sync(environment | server.environment, folder)
        assert code == 0, err
        assert out.splitlines()[0] == "sync: 2 to upload; 1 interrupted; 1 failed; 1 without offline files"
        assert out.splitlines()[-1] == "sync: 2 uploaded"
        assert margins(server) == expected(0, 1)
        assert not (Path(environment["HOME"]) / "wandb").exists()
        server.runs.clear()
        code, out, _ = sync(environment | server.environment, folder)
        assert (code, out.splitlines()[0]) == (
            0, "sync: 0 to upload; 2 uploaded before; 1 interrupted; 1 failed; 1 without offline files"
        )  # fmt: skip
        assert not server.runs


def test_several_sweeps_are_uploaded_together(tmp_path, environment):
    folders = [make(tmp_path / name, ("finished",)) for name in "ab"]
    with serving() as server:
        assert sync(environment | server.environment | {"WANDB_MODE": "offline"}, *folders, "--jobs", 2)[0] == 0
        assert sorted(run.about["groupName"] for run in server.runs.values()) == ["a", "b"]


@pytest.mark.slow
def test_an_interrupted_upload_goes_on_where_it_was_and_nothing_is_lost(tmp_path, environment):
    folder = make(tmp_path / "s", ("finished",) * 4)
    with serving() as server:
        server.delay = 0.5
        process = start(environment | server.environment, folder, "--jobs", 1)
        deadline = time.monotonic() + 60
        while not list(folder.glob("*/wandb/*/*.synced")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        done = len(list(folder.glob("*/wandb/*/*.synced")))
        assert 1 <= done < 4
        assert process.returncode == 130
        assert out.splitlines()[-1] == f"sync: {done} uploaded; {4 - done} not, the same command goes on"
        server.delay = 0.0
        code, out, _ = sync(environment | server.environment, folder)
        assert (code, out.splitlines()[0]) == (0, f"sync: {4 - done} to upload; {done} uploaded before")
        assert margins(server) == expected(0, 1, 2, 3)


def test_what_the_server_did_not_take_is_counted_and_the_exit_code_says_so(tmp_path, monkeypatch, capsys):
    folder = make(tmp_path / "s", ("finished", "finished"))
    monkeypatch.setattr(src.sync, "_log_in", lambda: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: Path(f"{command[-1]}.synced").touch())
    assert src.sync.main([str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "sync: 1 uploaded; 1 not, the same command goes on"


def test_without_an_account_it_is_refused_in_one_line(tmp_path, environment):
    code, _, err = sync(environment, make(tmp_path / "s", ("finished",)))
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("sync: not logged in to W&B: No API key configured.")


@pytest.mark.parametrize("bad", [("nowhere",), (".",), ("s", "--jobs", "0")])
def test_a_folder_that_is_no_sweep_and_a_bad_option_are_refused_in_one_line(tmp_path, monkeypatch, capsys, bad):
    make(tmp_path / "s", ("finished",))
    monkeypatch.chdir(tmp_path)
    assert src.sync.main(list(bad)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
