"""Sweeps on Ray and through Slurm: the same runs to the last bit, and none is lost when a worker is.

Ray is a real cluster of one machine. Submitit runs its jobs as processes here (its `local` cluster); what it would tell
Slurm is looked at with commands that stand in for Slurm's.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.config import Launcher
from src.errors import BadInput
from src.launching import cluster, locks
from tests.conftest import TOY
from tests.stacks import SMALL_LLAMA
from tests.test_resume import folders, histories, states

pytest.importorskip("ray")
pytest.importorskip("submitit")

RAY = ("launcher.engine=ray",)
SUBMITIT = ("launcher.engine=slurm", "+launcher.slurm.cluster=local")
ENGINES = pytest.mark.parametrize("engine", [RAY, SUBMITIT], ids=["ray", "submitit"])
SWEEP = ("loss=dpo,ipo", "seed=0,1", *TOY[:-1], "lr=1e-2", "compute.stack_size=2", "launcher.processes=1")
PATIENCE_SECONDS = 240


@pytest.fixture
def begin(environment) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a sweep in a folder, as the leader of a process group; none outlives the test."""
    begun = []

    def started(cwd: Path, *overrides: str, **env: str) -> subprocess.Popen[str]:
        cwd.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "src.run", "-m", *overrides, "sweep=s"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=cwd, env=environment | env, text=True, start_new_session=True, **pipes)
        begun.append(process)
        return process

    yield started
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, err) == (code, ""), (out, err)
    return out


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written(sweep: Path) -> list[Path]:
    """Histories that have rows by now."""
    return [path for path in sweep.glob("*/history.arrow") if path.stat().st_size > 2000]


def writer_of(history: Path) -> int:
    """The process that has this file open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if descriptor.readlink() == history:
                return int(descriptor.parts[2])
        except OSError:
            continue
    raise AssertionError(f"nobody writes {history}")


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


# ---- the same results


@pytest.mark.slow
@pytest.mark.parametrize("model", [("model=tabular",), SMALL_LLAMA], ids=["tabular", "tiny_llama"])
def test_a_mixed_sweep_is_the_same_to_the_bit_here_on_ray_and_through_submitit(begin, tmp_path, model):
    """3 losses x 2 optimisers x 2 learning rates x 3 seeds, one rate is too high for some."""
    overrides = (
        "loss=dpo,ipo,simpo", "optimizer=sgd,adam", "lr=1e-3,1e4", "seed=0,1,2", *model, "data=synthetic",
        "data.prompts=3", "batch_size=2", "steps=6", "tracking=none", "launcher.processes=2",
    )  # fmt: skip
    found = {}
    for name, engine in {"local": (), "ray": RAY, "submitit": SUBMITIT}.items():
        end(begin(tmp_path / name, *overrides, *engine))
        sweep = tmp_path / name / "outputs" / "s"
        ends = {run.name: {k: v for k, v in status(run).items() if k not in TIMES} for run in folders(sweep)}
        left = sorted(path.name for path in sweep.iterdir() if not path.is_dir() or path.name.startswith("."))
        found[name] = (histories(sweep), ends, left)
    assert len(found["local"][0]) == 36
    assert {end["state"] for end in found["local"][1].values()} == {"finished", "diverged"}
    assert found["ray"] == found["local"]
    assert found["submitit"] == found["local"]


TIMES = {"started", "ended", "train_seconds"}


# ---- a worker is lost


@pytest.mark.slow
@ENGINES
def test_the_stack_of_a_worker_that_is_killed_goes_on_elsewhere_from_its_checkpoint(begin, tmp_path, engine):
    overrides = (*SWEEP, "steps=2500", "launcher.checkpoint_steps=100")
    end(begin(tmp_path / "whole", *overrides))
    process = begin(tmp_path / "killed", *overrides, *engine)
    sweep = tmp_path / "killed" / "outputs" / "s"
    wait_until(lambda: list(sweep.glob(".checkpoints/*/step-*")) and written(sweep))
    victim = written(sweep)[0]
    os.kill(writer_of(victim), signal.SIGKILL)
    end(process)
    assert histories(sweep) == histories(tmp_path / "whole" / "outputs" / "s")
    assert set(states(sweep).values()) == {"finished"}
    killed = [run for run in folders(sweep) if status(run)["attempt"] > 1]
    assert victim.parent in killed
    assert len(killed) == 2  # the others were not trained twice
    assert status(victim.parent)["resumed"][0]["step"] >= 100


@pytest.mark.slow
@ENGINES
def test_a_stack_that_loses_more_workers_than_it_may_has_failed_and_the_sweep_goes_on(begin, tmp_path, engine):
    process = begin(tmp_path, *SWEEP, "steps=2500", "launcher.retries=0", *engine)
    sweep = tmp_path / "outputs" / "s"
    wait_until(lambda: written(sweep))
    victim = written(sweep)[0]
    os.kill(writer_of(victim), signal.SIGKILL)
    out = end(process, code=1)
    assert "2 failed" in out.splitlines()[-1]
    assert "2 finished" in out.splitlines()[-1]
    assert sorted(states(sweep).values()) == ["failed", "failed", "finished", "finished"]
    assert "was lost: " in status(victim.parent)["reason"]
    assert len([line for line in out.splitlines() if ": failed: " in line]) == 2


@pytest.mark.slow
def test_a_job_that_is_to_make_room_checkpoints_at_its_next_update_and_goes_on_from_there(begin, tmp_path):
    overrides = (*SWEEP, "steps=2500", "launcher.checkpoint_minutes=null")
    end(begin(tmp_path / "whole", *overrides))
    process = begin(tmp_path / "preempted", *overrides, *SUBMITIT)
    sweep = tmp_path / "preempted" / "outputs" / "s"
    wait_until(lambda: written(sweep))
    victim = written(sweep)[0]
    os.kill(writer_of(victim), signal.SIGUSR2)  # as Slurm does
    end(process)
    assert histories(sweep) == histories(tmp_path / "whole" / "outputs" / "s")
    assert status(victim.parent)["resumed"][0]["step"] > 0


# ---- the driver is stopped, or lost


@pytest.mark.slow
@ENGINES
def test_after_ctrl_c_every_run_is_interrupted_with_a_checkpoint_and_any_engine_goes_on(begin, tmp_path, engine):
    overrides = (*SWEEP, "steps=2500", "launcher.checkpoint_minutes=null")
    end(begin(tmp_path / "whole", *overrides))
    process = begin(tmp_path / "stopped", *overrides, *engine)
    sweep = tmp_path / "stopped" / "outputs" / "s"
    wait_until(lambda: written(sweep))
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to the whole group
    out = end(process, code=130)
    assert out.splitlines()[-1].startswith("stopped; the same command goes on from here")
    assert "interrupted" in states(sweep).values()
    assert set(states(sweep).values()) <= {"interrupted", "planned", "finished"}
    assert not list(sweep.glob(".wanted-*"))
    end(begin(tmp_path / "stopped", *overrides))
    assert histories(sweep) == histories(tmp_path / "whole" / "outputs" / "s")
    assert any(status(run).get("resumed") for run in folders(sweep))


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_ray_cluster_along(begin, tmp_path):
    process = begin(tmp_path, *SWEEP, "steps=100000000", *RAY)
    sweep = tmp_path / "outputs" / "s"
    wait_until(lambda: written(sweep))
    process.kill()
    process.communicate()
    wait_until(lambda: not any(locks.held(sweep, run.name.rsplit("-", 1)[-1]) for run in folders(sweep)))


# ---- Slurm itself


@pytest.fixture
def slurm(tmp_path) -> Iterator[dict[str, str]]:
    """An environment in which there is a Slurm."""
    commands, jobs = tmp_path / "bin", tmp_path / "jobs"
    commands.mkdir()
    jobs.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        (commands / name).symlink_to(Path(__file__).parent / "fake_slurm.py")
    yield {"PATH": f"{commands}:{os.environ['PATH']}", "FAKE_SLURM": str(jobs)}


@pytest.mark.slow
def test_slurm_gets_one_array_with_a_job_for_each_stack(begin, tmp_path, slurm):
    given = ("launcher.cpus=2", "+launcher.slurm.partition=long", "+launcher.slurm.mem_gb=3", "+launcher.slurm.qos=low")
    end(begin(tmp_path, *SWEEP, TOY[-1], "launcher.engine=slurm", *given, **slurm))
    sweep = tmp_path / "outputs" / "s"
    assert set(states(sweep).values()) == {"finished"}
    script = (tmp_path / "jobs" / "script").read_text()
    wanted = "array=0-1%2 cpus-per-task=2 job-name=margincall mem=3GB partition=long qos=low time=60"
    assert {f"#SBATCH --{option}" for option in wanted.split()} <= set(script.splitlines())
    assert "gpus" not in script
    assert {path.name for path in sweep.iterdir()} == {"sweep.json", ".locks", *(run.name for run in folders(sweep))}


@pytest.mark.slow
def test_stopped_a_sweep_cancels_the_jobs_that_wait_and_lets_the_others_write_a_checkpoint(begin, tmp_path, slurm):
    overrides = (*SWEEP, "steps=100000000", "launcher.engine=slurm", "+launcher.slurm.array_parallelism=1")
    process = begin(tmp_path, *overrides, **slurm)
    sweep = tmp_path / "outputs" / "s"
    wait_until(lambda: written(sweep))
    process.send_signal(signal.SIGTERM)
    end(process, code=130)
    assert sorted(states(sweep).values()) == ["interrupted", "interrupted", "planned", "planned"]
    assert len(list(sweep.glob(".checkpoints/*/step-*"))) == 1
    assert (tmp_path / "jobs" / "77_1").read_text().startswith("CANCELLED")


def test_what_sbatch_says_when_it_refuses_is_said_in_one_line(sweep, tmp_path, slurm, monkeypatch):
    monkeypatch.setenv("PATH", slurm["PATH"])
    (tmp_path / "bin" / "sbatch").unlink()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: long' >&2; exit 1\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    with pytest.raises(BadInput, match="invalid partition specified: long"):
        sweep(" ".join(TOY), launcher=Launcher(engine="slurm", slurm={"partition": "long"}))


@pytest.mark.filterwarnings("ignore:.*DEBUG_.*_log:pytest.PytestUnraisableExceptionWarning")  # submitit closes no logs
def test_a_sweep_can_be_tried_in_this_process(sweep, tmp_path):
    assert sweep(" ".join(TOY), launcher=Launcher(engine="slurm", slurm={"cluster": "debug"})) == 0
    assert set(states(tmp_path / "s").values()) == {"finished"}


# ---- refused before anything is created


@pytest.mark.parametrize(
    ("launcher", "named"),
    [(Launcher(engine="slurm"), "no sbatch on this machine"),
     (Launcher(engine="slurm", slurm={"cluster": "lsf"}), "lsf"),
     (Launcher(engine="slurm", slurm={"cluster": "local", "partitoin": "long"}), "partitoin"),
     (Launcher(engine="slurm", slurm={"cluster": "local", "timeout_min": "long"}), "timeout_min"),
     (Launcher(engine="slurm", slurm={"cluster": "local", "gpus_per_node": 2}), "launcher.gpus"),
     (Launcher(engine="slurm", slurm={"cluster": "local"}, gpus=0.5), "launcher.gpus=0.5"),
     (Launcher(engine="ray", gpus=1.5), "launcher.gpus=1.5"),
     (Launcher(engine="ray", cpus=4096), "launcher.cpus=4096"),
     (Launcher(engine="ray", address="127.0.0.1:1"), "launcher.address=127.0.0.1:1: .*refused")],
)  # fmt: skip
def test_an_engine_that_cannot_give_what_is_asked_is_refused_and_nothing_is_created(sweep, tmp_path, launcher, named):
    with pytest.raises(BadInput, match=named) as refused:
        sweep(" ".join(TOY), launcher=launcher)
    assert len(str(refused.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(sweep, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(cluster, "find_spec", lambda package: None)
    with pytest.raises(BadInput, match=rf"pip install 'margincall\[{engine}\]'"):
        sweep(" ".join(TOY), launcher=Launcher(engine=engine))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_a_gpu_is_asked_of_the_cluster_not_of_this_machine(sweep, tmp_path, engine):
    with pytest.raises(BadInput, match=r"launcher\.gpus=1"):
        sweep(f"{' '.join(TOY)} compute=cuda", launcher=Launcher(engine=engine))
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    work = cluster.Work(tmp_path / "elsewhere", "s", (), (), Launcher(engine="ray"))
    with pytest.raises(FileNotFoundError, match="elsewhere is not on a file system"):
        cluster._train_there(work, tmp_path)
