"""`python -m analysis watch`: a sweep as it trains."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from analysis import collapse, load
from analysis.__main__ import main
from analysis.sweep import RunError
from analysis.tail import Tail
from analysis.watch import BARS, Watch, sparkline
from tests.analysis.conftest import Run, write_run, write_stream, write_sweep_file, written

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | {
    "TERM": "xterm-256color"
}


def stream(tmp_path: Path, run: Run) -> bytes:
    write_stream(tmp_path / "whole.arrow", run.history(), batch=7)
    return (tmp_path / "whole.arrow").read_bytes()


@contextmanager
def held(sweep: Path, run: Run) -> Iterator[None]:
    """As the process that trains the run holds its lock."""
    lock = sweep / ".locks" / run.id
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(sweep: Path, run: Run, state: str) -> None:
    file = sweep / run.dir / "status.json"
    temporary = file.with_name(".status")
    temporary.write_text(
        json.dumps({"format": 1, "state": state, "steps_done": run.steps, "step": None, "reason": None})
    )
    temporary.replace(file)


def test_a_stream_cut_off_anywhere_gives_its_whole_batches_and_later_the_rest(tmp_path: Path) -> None:
    content, file = stream(tmp_path, Run(steps=20)), tmp_path / "history.arrow"
    whole = Run(steps=20).history()["margin"]
    for cut in range(0, len(content), 13):
        file.write_bytes(content[:cut])
        tail = Tail(file, ["margin"])
        tail.read()
        assert tail.rows in (0, 7, 14, 20)
        np.testing.assert_array_equal(tail.column("margin"), whole[: tail.rows])
        with file.open("ab") as more:
            more.write(content[cut:])
        tail.read()
        np.testing.assert_array_equal(tail.column("margin"), whole)
        file.unlink()


def test_what_was_read_is_never_read_again(tmp_path: Path) -> None:
    content, file = stream(tmp_path, Run(steps=60)), tmp_path / "history.arrow"
    half = len(content) // 2
    file.write_bytes(content[:half])
    tail = Tail(file, ["margin"])
    assert tail.read() and not tail.read()
    rows = tail.rows
    with file.open("r+b") as spoilt:
        spoilt.write(b"\0" * (half // 2))
        spoilt.seek(half)
        spoilt.write(content[half:])
    assert tail.read() and rows < tail.rows == 60
    np.testing.assert_array_equal(tail.column("margin"), Run(steps=60).history()["margin"])


def test_a_history_that_did_not_grow_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = written(tmp_path / "sweep", *(Run(seed=seed) for seed in range(20)))
    watch = Watch(sweep)
    watch.look()
    opened: list[Path] = []
    whole = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: opened.append(self) or whole(self, *args, **kwargs))
    watch.look()
    assert opened == []
    (next(sweep.glob("*seed7*")) / "status.json").write_text(json.dumps({"format": 1, "state": "failed"}))
    watch.look()
    assert {path.parent.name.split("-")[0] for path in opened} == {"dpo_beta0.1_seed7"}


def test_a_run_that_begins_anew_is_read_from_its_start(tmp_path: Path) -> None:
    file = tmp_path / "history.arrow"
    file.write_bytes(stream(tmp_path, Run(steps=40)))
    tail = Tail(file, ["margin"])
    tail.read()
    again = tmp_path / ".history"
    again.write_bytes(stream(tmp_path, Run("ipo", steps=50)))
    again.rename(file)
    assert tail.read() and tail.rows == 50
    np.testing.assert_array_equal(tail.column("margin"), Run("ipo", steps=50).history()["margin"])
    file.unlink()
    tail.read()
    assert tail.rows == 0


def test_a_file_that_is_no_stream_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "history.arrow").write_bytes(b"not an Arrow stream at all")
    with pytest.raises(RunError, match=r"history\.arrow is not an Arrow IPC stream"):
        Tail(tmp_path / "history.arrow", ["margin"]).read()
    sweep = written(tmp_path / "sweep", Run(), Run("ipo"))
    (sweep / Run().dir / "history.arrow").write_bytes(b"not an Arrow stream at all")
    watch = Watch(sweep)
    watch.look()
    assert [run.state for run in watch.runs.values()] == ["unreadable", "finished"]
    assert watch.runs[Run().id].problem == "history.arrow is not an Arrow IPC stream"


def test_a_growing_history_is_followed_to_its_end(tmp_path: Path) -> None:
    run = Run("dpo", 2.0, steps=600, state="running")
    sweep = written(tmp_path / "sweep", run)
    file = sweep / run.dir / "history.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 8])
    with held(sweep, run):
        watch = Watch(sweep)
        watch.look()
        seen = watch.runs[run.id]
        early = seen.tail.rows
        assert 0 < early < 100 and seen.state == "running" and seen.verdict == "none" and not watch.over
        assert watch.headline().startswith("synthetic: ") and "1 running of 1, ETA" in watch.headline()
        with file.open("ab") as more:
            more.write(content[len(content) // 8 :])
        watch._judge_again = 0.0  # it spares the processor; the test does not wait
        watch.look()
        assert seen.tail.rows == 600 and seen.verdict == "margin collapse" and seen.rate > 0
    say(sweep, run, "finished")
    watch.look()
    assert watch.over and watch.headline() == "synthetic: 100 %; 1 finished of 1"
    read = load(sweep)
    assert seen.verdict == collapse.verdicts(read.runs, read.history)["label"].iloc[0]
    assert seen.last("margin") == read.history["margin"].iloc[-1]


def test_a_run_that_appears_later_and_one_the_sweep_grows_by_are_taken_up(tmp_path: Path) -> None:
    one, two, three = Run(), Run("ipo"), Run("dpo", 0.5)
    sweep = written(tmp_path / "sweep", one)
    write_sweep_file(sweep, [one, two])
    watch = Watch(sweep)
    watch.look()
    assert [run.state for run in watch.runs.values()] == ["finished", "waiting"] and not watch.over
    write_run(sweep, two)
    write_sweep_file(sweep, [one, two, three])
    watch.look()
    assert [run.state for run in watch.runs.values()] == ["finished", "finished", "waiting"]
    write_run(sweep, three)
    watch.look()
    assert watch.over and watch.share == 1


def test_a_run_that_was_killed_does_not_pass_for_running(tmp_path: Path) -> None:
    run = Run(state="running")
    sweep = written(tmp_path / "sweep", run)
    watch = Watch(sweep)
    assert watch.runs[run.id].state == "interrupted" and "ETA unknown" in watch.headline()
    with held(sweep, run):
        watch.look()
        assert watch.runs[run.id].state == "running"


def test_a_reward_model_has_no_margin_and_shows_its_reward_margin(tmp_path: Path, capsys: Any) -> None:
    sweep = written(tmp_path / "sweep", Run("dpo", objective="reward_model", steps=200))
    assert main(["watch", str(sweep), "--once"]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert BARS[-1] in line and "200/200" in line


def test_once_prints_one_frame_and_no_colours_into_a_pipe(tmp_path: Path) -> None:
    sweep = written(
        tmp_path / "sweep", Run("dpo", 2.0, steps=600), Run("ipo"), Run("ipo", 0.5, state="planned", stopped_at=0)
    )
    code = (
        "import sys\n"
        "from analysis.__main__ import main\n"
        "assert main(['watch', sys.argv[1], '--once']) == 0\n"
        "assert not {'torch', 'src', 'wandb', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(sweep)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    head, columns, *rows = done.stdout.splitlines()
    assert head.startswith("synthetic: 92 %; 2 finished, 1 planned of 3")
    assert columns.split()[:5] == ["state", "run", "step", "margin", "h"] and columns.split()[-1] == "ETA"
    assert [row.split()[:3] for row in rows] == [
        ["finished", "dpo_beta2_seed42", "600/600"], ["finished", "ipo_beta0.1_seed42", "60/60"],
        ["planned", "ipo_beta0.5_seed42", "0/60"],
    ]  # fmt: skip
    assert "margin collapse" in rows[0] and re.search(r" 5 +0\.0\d+ ", rows[1])


def test_a_frame_fits_the_terminal_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    runs = [Run(seed=seed) for seed in range(30)]
    runs[25].state = "failed"
    watch = Watch(written(tmp_path / "sweep", *runs))
    console = Console(width=100, file=io.StringIO())
    console.print(watch.frame(100, 20))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) <= 20 and "failed" in lines[2] and lines[-1].startswith("… and 16 more: 16 finished")


def test_of_labels_that_do_not_fit_the_ends_are_kept(tmp_path: Path) -> None:
    watch = Watch(written(tmp_path / "sweep", *(Run("dpo", 0.12345678, seed=seed) for seed in (12345, 67890))))
    console = Console(width=60, file=io.StringIO())
    console.print(watch.frame(60))
    shown = [line.split()[1] for line in console.file.getvalue().splitlines()[2:]]  # type: ignore[attr-defined]
    assert all(label.startswith("dpo_b") and "…" in label for label in shown)
    assert [label.split("d")[-1] for label in shown] == ["12345", "67890"]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_narrow_terminal_has_fewer_columns_and_none_that_is_cut_but_the_label(tmp_path: Path, width: int) -> None:
    watch = Watch(written(tmp_path / "sweep", Run("dpo", 2.0, steps=600), Run("ipo")))
    watch.look()
    console = Console(width=width, file=io.StringIO())
    console.print(watch.frame(width))
    _, head, *rows = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(row) <= width for row in (head, *rows)) and "…" not in head
    assert "600/600" in rows[0] and "margin collapse" in rows[0] and "finished" in rows[1]
    assert ("loss" in head) == (width >= 140) and (BARS[-1] in rows[0]) == (width >= 80)


def test_into_a_pipe_it_writes_a_line_for_each_change_and_ends_with_the_sweep(tmp_path: Path) -> None:
    run, later = Run(steps=200, state="running"), Run("ipo", steps=200)
    sweep = written(tmp_path / "sweep", run)
    write_sweep_file(sweep, [run, later])
    file = sweep / run.dir / "history.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with held(sweep, run):
        watching = subprocess.Popen(
            [sys.executable, "-m", "analysis", "watch", str(sweep), "--every", "0.05"],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("dpo_beta0.1_seed42: running, ")
        with file.open("ab") as more:
            more.write(content[len(content) // 2 :])
        write_run(sweep, later)
        say(sweep, run, "finished")
        out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0 and err == "" and "\x1b" not in out
    assert "dpo_beta0.1_seed42: finished, 200 of 200 steps, margin" in out and "ipo_beta0.1_seed42: finished" in out
    assert out.splitlines()[-1] == "synthetic: 100 %; 2 finished of 2"


def terminal(arguments: list[str], until: str, then: Any) -> tuple[int, str]:
    """Run under a pseudo-terminal; when `until` is on it, call then(process); -> exit code, everything written."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "analysis", *arguments], cwd=ROOT, env=ENVIRONMENT | {"COLUMNS": "140", "LINES": "30"},
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    seen, told, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                seen += os.read(leader, 65536)
            except OSError:
                break
        if not told and until.encode() in seen:
            told = True
            then(process)
        if process.poll() is not None and not select.select([leader], [], [], 0)[0]:
            break
    os.close(leader)
    return process.wait(10), seen.decode(errors="replace")


def test_ctrl_c_ends_the_watching_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    run = Run(state="running", steps=100)
    sweep = written(tmp_path / "sweep", run)
    with held(sweep, run):
        code, seen = terminal(["watch", str(sweep)], "100/100", lambda process: process.send_signal(signal.SIGINT))
    assert code == 0 and "Traceback" not in seen
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l") >= 0  # the cursor is shown again


def test_a_terminal_is_drawn_over_as_the_sweep_goes_on(tmp_path: Path) -> None:
    run = Run(steps=300, state="running")
    sweep = written(tmp_path / "sweep", run)
    file = sweep / run.dir / "history.arrow"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])

    def finish(_: Any) -> None:
        with file.open("ab") as more:
            more.write(content[len(content) // 3 :])
        say(sweep, run, "finished")

    with held(sweep, run):
        code, seen = terminal(["watch", str(sweep), "--every", "0.1"], "running", finish)
    assert code == 0 and "300/300" in seen and "\x1b[" in seen and seen.count("dpo_beta0.1_seed42") >= 2


def test_what_is_no_sweep_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "no")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "sweep.json is missing" in err
    with pytest.raises(SystemExit, match="2"):
        main(["watch", str(tmp_path), "--every", "0"])
    assert "seconds, more than 0" in capsys.readouterr().err


@pytest.mark.parametrize("values, shown", [
    ([], ""), ([np.nan] * 3, ""), ([1.0], BARS[0]), (range(8), BARS), ([0, np.nan, 7], "▁ █"),
    ([0] * 50 + [1] * 50, BARS[0] * 10 + BARS[-1] * 10),
])  # fmt: skip
def test_sparklines(values: Any, shown: str) -> None:
    assert sparkline([*values], 20) == shown


@pytest.mark.slow
def test_a_real_sweep_is_watched_from_before_its_first_row_to_its_end(tmp_path: Path) -> None:
    arguments = ["-m", "loss=dpo,ipo", "beta=0.1,2", "model=tabular", "lr=0.5", "steps=6000", "tracking=none"]
    training = subprocess.Popen(
        [sys.executable, "-m", "src.run", *arguments, f"output={tmp_path}", "sweep=real"],
        cwd=ROOT, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    sweep = tmp_path / "real"
    deadline = time.monotonic() + 120
    while not (sweep / "sweep.json").is_file():
        assert time.monotonic() < deadline and training.poll() is None
        time.sleep(0.05)
    watch, rows = Watch(sweep), []
    while not watch.over and time.monotonic() < deadline:
        watch.look()
        rows.append(sum(run.tail.rows for run in watch.runs.values()))
        time.sleep(0.2)
    assert training.wait(60) == 0
    assert rows == sorted(rows) and len({*rows}) > 3 and rows[-1] == 4 * 6000
    watch._judge_again = 0.0
    watch.look()
    read = load(sweep)
    labels = collapse.verdicts(read.runs, read.history)["label"]
    assert {run.id: run.verdict for run in watch.runs.values()} == labels.to_dict()
