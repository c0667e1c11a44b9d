"""One sweep, trained for real, read from its run directories, from W&B's offline files and from a W&B project."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wandb

from analysis import beside_history, load, wandb_files, wandb_project
from analysis.sweep import RunError, Sweep, SweepError, census
from tests.analysis.wandb_server import Recorded, Server, recorded

pytestmark = pytest.mark.slow  # the sweep takes ten seconds, nearly all of it W&B's

# What W&B does not hold: analysis/wandb_runs.py.
NOT_IN_WANDB = {"dir", "pairs", "chosen_tokens", "rejected_tokens", "reason"}
STEPS = 40


@pytest.fixture(scope="module")
def trained(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs, one of which diverges, mirrored offline."""
    work = tmp_path_factory.mktemp("trained")
    done = cli(
        "-m", "loss=dpo,ipo", "lr=0.5,1e30", "model=tabular", "data=synthetic", f"steps={STEPS}",
        "tracking=wandb_offline", "sweep=small", f"output={work}", cwd=work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return work / "small"


@pytest.fixture(scope="module")
def offline(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W&B's files of that sweep, away from its run directories."""
    return wandb_files_of(trained, tmp_path_factory.mktemp("offline"))


def wandb_files_of(sweep: Path, folder: Path) -> Path:
    for run in sweep.glob("*/wandb"):
        shutil.copytree(run, folder / run.parent.name)
    return folder


@pytest.fixture(scope="module")
def evaluated(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs on data with held-out pairs, evaluated every 15 updates: of two that may stop early one does, after 15;
    the other, and one of those that may not, diverge.
    """
    work = tmp_path_factory.mktemp("evaluated")
    done = cli(
        "-m", "loss=ipo", "lr=0.05,1e30", "early_stop.patience=null,1", "early_stop.min_reward_gain=100",
        "early_stop.kl_tolerance=1", "model=tabular", "data._target_=tests.held_out.one_pair", f"steps={STEPS}",
        "evaluation.every=15", "evaluation.samples=4", "tracking=wandb_offline", "sweep=small", f"output={work}",
        cwd=work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return work / "small"


@pytest.fixture
def copied(offline: Path, tmp_path: Path) -> Path:
    """To spoil."""
    return Path(shutil.copytree(offline, tmp_path / "copied"))


@pytest.fixture
def server(offline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A W&B project with these runs in it."""
    played = Server([recorded(file) for file in sorted(offline.rglob("*.wandb"))])
    monkeypatch.setattr(wandb, "Api", lambda: played)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return played


def one_file(folder: Path, label: str) -> Path:
    (file,) = folder.glob(f"{label}-*/**/*.wandb")
    return file


def same(one: Sweep, two: Sweep) -> None:
    """Equal in every value and type; the columns may come in another order."""
    assert one.name == two.name
    pd.testing.assert_frame_equal(one.history, two.history[one.history.columns], check_exact=True)
    shared = [column for column in one.runs if column in two.runs and column not in NOT_IN_WANDB]
    lacking = {*one.runs} - {*shared}
    assert {column.split(".")[0] for column in lacking} <= NOT_IN_WANDB | {"compute", "tracking"}
    assert {*two.runs} <= {*one.runs}
    pd.testing.assert_frame_equal(one.runs[shared], two.runs[shared], check_exact=True)
    assert census(one.runs) == census(two.runs)


def test_the_three_sources_of_a_sweep_give_equal_frames(trained: Path, offline: Path, server: Server) -> None:
    directories = load(trained)
    assert sorted(directories.runs["state"]) == ["diverged", "finished", "finished", "finished"]
    assert not np.isfinite(directories.history["loss"]).all() and 3 * STEPS < len(directories.history) < 4 * STEPS
    same(directories, load(offline, expected=trained))
    same(directories, load("wandb://me/margincall/small", expected=trained / "sweep.json"))
    assert server.listed == 2  # more than one page of runs


def test_so_they_do_of_a_sweep_with_evaluations_and_these_are_equal_too(
    evaluated: Path, server: Server, tmp_path: Path
) -> None:
    directories = load(evaluated)
    ends = {label: own.iloc[0].tolist() for label, own in directories.runs.groupby("label")[["state", "rows"]]}
    assert sorted(ends.values()) == [["diverged", 2], ["diverged", 2], ["finished", 15], ["finished", STEPS]]
    files = wandb_files_of(evaluated, tmp_path / "files")
    server.runs_there = [recorded(file) for file in sorted(files.rglob("*.wandb"))]
    with_answers = server.runs_there[0]  # online the last evaluation's row has a table too
    with_answers.rows[-1] |= {"samples": '{"_type": "table-file", "path": "media/table/samples.json"}'}
    sources = [load(files, expected=evaluated), load("wandb://me/margincall", expected=evaluated)]
    kept = load("wandb://me/margincall", expected=evaluated, columns=["margin"])
    found = beside_history.evaluations(directories)
    assert found.problems == () and {*found.rows["step"]} == {0, 15, 30, STEPS}
    made = zip(directories.runs["state"], directories.runs["rows"], strict=True)
    expected = [len(range(0, rows, 15)) + (state == "finished") for state, rows in made]
    assert found.rows.groupby("run", sort=False).size().tolist() == expected
    assert {"eval/rewards/margins", "eval/loss", "eval/kl_k3", "eval/kl_k3_se"} <= {*found.rows.columns}
    for source in (*sources, kept):
        rows = beside_history.evaluations(source).rows
        pd.testing.assert_frame_equal(found.rows, rows[found.rows.columns], check_exact=True)
        assert {*rows.columns} == {*found.rows.columns}
    for source in sources:
        same(directories, source)


def test_from_a_project_only_what_changed_is_asked_for_again(trained: Path, server: Server) -> None:
    first = load("wandb://me/margincall", expected=trained)
    pages = server.asked
    again = load("wandb://me/margincall", expected=trained)
    same(first, again)
    assert pages == server.asked == 4
    grown = server.runs_there[0]
    grown.node |= {"historyLineCount": grown.node["historyLineCount"] + 1}
    load("wandb://me/margincall", expected=trained)
    assert server.asked == 5
    assert [file.suffix for file in wandb_project.cache_folder().rglob("*.*")] == [".parquet"] * 4


def test_a_run_that_goes_on_is_asked_for_every_time(server: Server) -> None:
    server.runs_there[0].node["state"] = "running"
    load("wandb://me/margincall")
    assert load("wandb://me/margincall").notices()[0].endswith(" steps") and server.asked == 5


@pytest.mark.parametrize("word, ours", [("crashed", "interrupted"), ("failed", "failed"), ("pending", "planned")])
def test_wandbs_states_become_ours(server: Server, word: str, ours: str) -> None:
    server.runs_there[1].node["state"] = word
    sweep = load("wandb://me/margincall")
    assert ours in set(sweep.runs["state"])


def test_a_run_whose_history_cannot_be_had_is_named_and_the_others_are_there(trained: Path, server: Server) -> None:
    name = server.runs_there[2].node["name"]
    server.broken.add(name)
    sweep = load("wandb://me/margincall", expected=trained)
    assert census(sweep.runs).startswith("3 of 4 runs; 1 missing")
    assert "Connection lost" in sweep.strays[f"W&B run {name}"] and len(sweep.defects()) == 2


def test_a_project_of_several_sweeps_needs_one_named(server: Server) -> None:
    other = server.runs_there[0]
    config = json.loads(other.node["config"]) | {"sweep": {"value": "another"}}
    other.node |= {"group": "another", "config": json.dumps(config)}
    with pytest.raises(SweepError, match="holds 2 sweeps, another, small; name one"):
        load("wandb://me/margincall")
    assert len(load("wandb://me/margincall/another").runs) == 1


def test_a_project_that_is_not_there_is_one_clear_error(server: Server) -> None:
    with pytest.raises(SweepError, match="wandb://me/else: Could not find project else"):
        load("wandb://me/else")


@pytest.mark.parametrize("source", ["wandb://me", "wandb://me/", "wandb://a/b/c/d", "wandb:///x"])
def test_an_incomplete_name_of_a_project_is_one_clear_error(source: str) -> None:
    with pytest.raises(SweepError, match="give wandb://entity/project"):
        load(source)


def test_runs_of_other_programs_in_the_project_are_named_as_foreign(trained: Path, server: Server) -> None:
    node = server.runs_there[0].node | {"name": "theirs", "config": json.dumps({"lr": {"value": 1}})}
    server.runs_there.append(Recorded(node, [{"_step": "0", "acc": "0.5", "picture": '{"_type": "image-file"}'}]))
    sweep = load("wandb://me/margincall", expected=trained)
    assert sweep.strays == {"W&B run theirs": "foreign: its configuration has no id, label and sweep"}
    assert len(sweep.runs) == 4


def test_without_a_sweep_file_there_is_no_word_of_how_many_runs_there_should_be(offline: Path) -> None:
    sweep = load(offline)
    assert census(sweep.runs).startswith("4 runs found; 1 diverged")
    assert sweep.name == "small" and not sweep.defects()


def test_a_missing_run_is_named_by_the_sweep_file(trained: Path, copied: Path) -> None:
    one_file(copied, "dpo_lr0.5").unlink()
    (defect,) = load(copied, expected=trained).defects()
    assert defect == "dpo_lr0.5: missing, left out: no W&B run of this id"


def test_a_file_cut_at_any_byte_gives_a_prefix_of_its_rows_and_is_not_finished(trained: Path, copied: Path) -> None:
    file = one_file(copied, "ipo_lr0.5")
    content = file.read_bytes()
    whole = load(copied, expected=trained)
    (run,) = whole.runs.index[whole.runs["label"] == "ipo_lr0.5"]
    margins = whole.history.loc[whole.history["run"] == run, "margin"].to_numpy()
    lengths = set()
    for size in [*range(4000, len(content), 2017), len(content) - 1]:
        file.write_bytes(content[:size])
        sweep = load(copied, columns=["margin"], expected=trained)
        assert sweep.runs.loc[run, "state"] == "running"
        left = sweep.history.loc[sweep.history["run"] == run, "margin"].to_numpy()
        assert np.array_equal(left, margins[: len(left)])
        lengths.add(len(left))
    assert len(lengths) > 10 and max(lengths) == STEPS


def test_a_corrupted_file_is_named_and_left_out(copied: Path) -> None:
    file = one_file(copied, "dpo_lr0.5")
    content = bytearray(file.read_bytes())
    content[20_000] ^= 1
    file.write_bytes(content)
    sweep = load(copied)
    assert len(sweep.runs) == 3
    ((name, why),) = sweep.strays.items()
    assert name.endswith(file.name) and "corrupted at byte" in why
    file.write_text("step,loss\n0,0.69\n")
    with pytest.raises(RunError, match="does not begin as a W&B file"):
        list(wandb_files.records(file))


def test_a_file_whose_tail_was_set_aside_and_never_written_is_read_to_there(copied: Path) -> None:
    file = one_file(copied, "dpo_lr0.5")
    whole = len(list(wandb_files.records(file)))
    with file.open("ab") as end:
        end.write(bytes(3000))
    assert len(list(wandb_files.records(file))) == whole


def test_an_attempt_that_starts_over_replaces_one_that_was_cut_off(trained: Path, copied: Path) -> None:
    file = one_file(copied, "dpo_lr0.5")
    early = file.with_name("run-earlier.wandb")
    early.write_bytes(file.read_bytes()[:20_000])
    sweep = load(copied, expected=trained)
    assert not sweep.strays and len(sweep.runs) == 4


def test_a_second_finished_copy_of_a_run_is_named_as_a_duplicate(trained: Path, copied: Path) -> None:
    file = one_file(copied, "dpo_lr0.5")
    shutil.copy(file, file.with_name("run-copy.wandb"))
    sweep = load(copied, expected=trained)
    ((name, why),) = sweep.strays.items()
    assert name.endswith(".wandb") and why.startswith("a duplicate of dpo_lr0.5")
    assert len(sweep.defects()) == 1


def test_of_several_attempts_at_a_run_the_last_holds_everything_and_is_read(trained: Path, server: Server) -> None:
    """A run that is begun again is told to W&B from its first row on, under an id of its own."""
    whole = load(trained)
    ended = next(run for run in server.runs_there if len(run.rows) == STEPS)
    first = Recorded(ended.node | {"name": "first"}, [row | {"loss": "9.0"} for row in ended.rows])
    config = json.loads(ended.node["config"])
    ended.node["config"] = json.dumps(config | {"attempt": {"value": 2}})
    ended.node["createdAt"] = "2020-01-01T00:00:00Z"  # of an earlier clock; the number of the attempt decides
    server.runs_there.append(first)
    again = load("wandb://me/margincall", expected=trained)
    assert not again.strays and sorted(again.runs["attempt"]) == [1, 1, 1, 2]
    pd.testing.assert_frame_equal(whole.history, again.history[whole.history.columns])


def test_a_history_with_a_gap_is_named(trained: Path, server: Server) -> None:
    del server.runs_there[0].rows[5]
    (defect,) = load("wandb://me/margincall", expected=trained).defects()
    assert "unreadable, left out: the history: steps do not count 0, 1, 2" in defect


@pytest.mark.parametrize("read", [
    lambda trained, offline: load(trained, columns=["margin", "log_pi/*/0"]),
    lambda trained, offline: load(offline, columns=["margin", "log_pi/*/0"]),
])  # fmt: skip
def test_only_the_wanted_columns_are_read_and_all_are_known_of(
    trained: Path, offline: Path, read: Callable[[Path, Path], Sweep]
) -> None:
    sweep = read(trained, offline)
    assert {*sweep.history.columns} == {"run", "step", "loss", "margin", "log_pi/0/0"}
    assert all("grad_norm" in columns for columns in sweep.runs["columns"])
    with pytest.raises(TypeError, match="a collection of names"):
        load(trained, columns="margin")


def test_a_sweep_file_of_ones_own_and_a_given_one_are_one_too_many(trained: Path) -> None:
    with pytest.raises(SweepError, match=r"has a sweep\.json of its own"):
        load(trained, expected=trained)
