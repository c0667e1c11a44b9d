"""Reading a sweep: everything that is there, nothing that is not, and a name for every run that is lacking."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock

from analysis import load, run_directories
from analysis.run_directories import read_stream
from analysis.sweep import RunError, Sweep, SweepError, as_dicts, census, with_columns


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def folder(sweep: Path, label: str) -> Path:
    (found,) = sweep.glob(f"{label}-*")
    return found


def state_of(sweep: Sweep, label: str) -> str:
    return str(sweep.runs.set_index("label").loc[label, "state"])


def test_a_whole_sweep_is_one_row_per_run_and_one_row_per_step(four_runs: Path) -> None:
    sweep = load(four_runs)
    assert list(sweep.runs["label"]) == [f"{loss}_beta{beta}_seed42" for loss in ("dpo", "ipo") for beta in (0.1, 0.5)]
    assert list(sweep.runs["loss.name"]) == ["dpo", "dpo", "ipo", "ipo"]
    assert list(sweep.runs["loss.beta"]) == list(sweep.runs["beta"]) == [0.1, 0.5, 0.1, 0.5]
    assert set(sweep.runs["optimizer.name"]) == {"sgd"} and set(sweep.runs["pairs"]) == {1}
    assert set(sweep.runs["state"]) == {"finished"} and sweep.notices() == [] and sweep.defects() == []
    assert sweep.history.groupby("run").size().to_dict() == dict.fromkeys(sweep.runs.index, 60)
    assert {"step", "margin", "log_pi/rejected"} <= set(sweep.history.columns)


def test_a_stream_cut_at_any_byte_gives_a_prefix_of_its_rows(four_runs: Path, tmp_path: Path) -> None:
    file = next(four_runs.glob("*/history.arrow"))
    content, (whole, _) = file.read_bytes(), read_stream(file)
    cut = tmp_path / "cut.arrow"
    lengths = set()
    for size in [*range(0, 64), *range(64, len(content), 197), len(content) - 9, len(content) - 8, len(content)]:
        cut.write_bytes(content[:size])
        rows, _ = read_stream(cut)
        lengths.add(rows.num_rows)
        assert rows.num_rows == 0 or rows.equals(whole.slice(0, rows.num_rows))
    assert lengths == {0, 25, 50, 60}  # only ever whole batches


def test_a_file_that_is_no_arrow_stream_is_an_error_not_an_empty_history(tmp_path: Path) -> None:
    (tmp_path / "h.arrow").write_text("step,loss\n0,0.69\n")
    with pytest.raises(RunError, match="not an Arrow IPC stream"):
        read_stream(tmp_path / "h.arrow")


def test_a_missing_run_is_named(four_runs: Path) -> None:
    shutil.rmtree(folder(four_runs, "ipo_beta0.5_seed42"))
    sweep = load(four_runs)
    assert state_of(sweep, "ipo_beta0.5_seed42") == "missing"
    assert len(sweep.notices()) == len(sweep.defects()) == 1 and "ipo_beta0.5_seed42" in sweep.notices()[0]
    assert census(sweep.runs) == "3 of 4 runs; 1 missing"


def test_runs_that_failed_diverged_or_go_on_are_named_and_keep_their_rows(write_sweep: Any, make_run: Any) -> None:
    runs = [
        make_run("dpo", 0.1),
        make_run("ipo", 0.1, state="diverged", stopped_at=12, reason="loss is not finite"),
        make_run("ipo", 0.2, state="failed", stopped_at=7, reason="out of memory"),
        make_run("ipo", 0.5, state="running", stopped_at=30),
        make_run("dpo", 0.5, state="planned", stopped_at=0),
    ]
    sweep = load(write_sweep(*runs))
    diverged, failed, running, planned = sweep.notices()
    assert "ipo_beta0.1" in diverged and "diverged at step 12: loss is not finite" in diverged
    assert "ipo_beta0.2" in failed and "failed at step 7: out of memory" in failed
    assert "ipo_beta0.5" in running and "not finished: interrupted, 30 of 60 steps" in running
    assert "dpo_beta0.5" in planned and "not finished: planned, 0 of 60 steps" in planned
    assert list(sweep.runs["rows"]) == [60, 12, 7, 30, 0]
    assert census(sweep.runs) == (
        "5 of 5 runs; 1 unfinished (planned); 1 unfinished (interrupted); 1 failed; 1 diverged at step 12"
    )
    assert [line.split(":")[0] for line in sweep.defects()] == ["ipo_beta0.5_seed42", "dpo_beta0.5_seed42"]


@pytest.mark.parametrize("spoil, because", [
    (lambda run: (run / "config.json").unlink(), "config.json is missing"),
    (lambda run: (run / "status.json").unlink(), "status.json is missing"),
    (lambda run: (run / "history.arrow").unlink(), "half-written"),
    (lambda run: (run / "config.json").write_text("{"), "config.json is not readable JSON"),
    (lambda run: (run / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json is not readable JSON"),
    (lambda run: (run / "status.json").write_text("[]"), "status.json holds a list"),
    (lambda run: edit(run / "config.json", format=2), "config.json has format 2"),
    (lambda run: edit(run / "config.json", id="else"), "foreign"),
    (lambda run: edit(run / "status.json", state="done"), "state 'done'"),
    (lambda run: edit(run / "status.json", steps_done=61), "has 60 of the 61 rows"),
    (lambda run: (run / "history.arrow").write_bytes((run / "history.arrow").read_bytes()[:-2000]), "half-written"),
    (lambda run: (run / "history.arrow").write_text("not arrow at all"), "not an Arrow IPC stream"),
])  # fmt: skip
def test_a_run_that_breaks_the_contract_is_left_out_by_name(four_runs: Path, spoil: Any, because: str) -> None:
    spoil(folder(four_runs, "ipo_beta0.1_seed42"))
    sweep = load(four_runs)
    (notice,) = sweep.notices()
    assert notice.startswith("ipo_beta0.1_seed42") and because in notice
    assert len(sweep.defects()) == 1
    assert sweep.history["run"].nunique() == 3


def test_a_history_with_gaps_or_without_its_columns_is_left_out(four_runs: Path) -> None:
    one, two = folder(four_runs, "dpo_beta0.1_seed42"), folder(four_runs, "ipo_beta0.1_seed42")
    whole, _ = read_stream(one / "history.arrow")
    for run, table in (
        (one, pa.concat_tables([whole.slice(0, 30), whole.slice(29, 30)])),
        (two, whole.drop_columns(["loss"])),
    ):
        with pa.ipc.new_stream(run / "history.arrow", table.schema) as stream:
            stream.write_table(table)
    gaps, lacking = load(four_runs).notices()
    assert "steps do not count 0, 1, 2" in gaps
    assert "lacks the column loss" in lacking


def test_a_run_without_columns_that_mean_nothing_for_it_is_read(write_sweep: Any, make_run: Any) -> None:
    """docs/run-directory.md: "A run has only the columns that have a meaning for it."."""
    runs = [make_run("dpo"), make_run("simpo", reference=False), make_run("dpo", objective="reward_model")]
    sweep = load(write_sweep(*runs, make_run("ipo", state="planned", stopped_at=0)))
    assert [sweep.runs.loc[run.id, "state"] for run in runs] == ["finished"] * 3 and len(sweep.notices()) == 1
    policy, free, model = (run.id for run in runs)
    assert list(with_columns(sweep.runs).index) == [policy, free, model]
    assert list(with_columns(sweep.runs, "margin").index) == [policy]
    assert list(with_columns(sweep.runs, "log_pi/rejected", "loss").index) == [policy, free]
    assert list(with_columns(sweep.runs, "rewards/margins").index) == [policy, model]
    assert sweep.history.groupby("run")["margin"].count().to_dict() == {policy: 60, free: 0, model: 0}


def test_a_run_directory_the_sweep_does_not_list_is_named(four_runs: Path) -> None:
    shutil.copytree(folder(four_runs, "dpo_beta0.1_seed42"), four_runs / "old-run")
    (four_runs / "figures").mkdir()
    sweep = load(four_runs)
    assert (
        list(sweep.strays) == ["old-run"]
        and "a duplicate of dpo_beta0.1_seed42" in sweep.strays["old-run"]
        and len(sweep.runs) == 4
    )
    assert "old-run" in sweep.notices()[0] and "old-run" in sweep.defects()[0]


def test_runs_with_different_columns_share_a_frame(write_sweep: Any, make_run: Any) -> None:
    adam = {"optimizer": {"name": "adam", "lr": 0.1, "betas": [0.9, 0.999]}}
    sweep = load(write_sweep(make_run(), make_run("ipo", changes=adam)))
    assert list(sweep.runs["optimizer.betas"])[1] == "[0.9, 0.999]"
    assert math.isnan(list(sweep.runs["optimizer.momentum"])[1])


@pytest.mark.parametrize("content, because", [
    ('{"format": 2, "runs": []}', "format 2; this analysis reads format 1 only"),
    ('{"format": 1, "runs": []}', "non-empty list"),
    ('{"format": 1, "runs": [{"id": "a", "label": "a"}]}', "id, label and dir"),
    ('{"format": 1, "runs": [{"id": "a", "label": "a", "dir": "../a"}]}', "a plain name"),
    ('{"format": 1, "runs": [{"id": "a", "label": "a", "dir": "a"}, {"id": "a", "label": "b", "dir": "b"}]}', "twice"),
    ("{", "not readable JSON"),
])  # fmt: skip
def test_a_bad_sweep_file_is_one_clear_error(tmp_path: Path, content: str, because: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(SweepError, match=because):
        load(tmp_path)


def test_a_run_directory_is_told_from_a_sweep(four_runs: Path) -> None:
    with pytest.raises(SweepError, match=f"a run directory; give its sweep's directory, {four_runs}"):
        load(folder(four_runs, "dpo_beta0.1_seed42"))


def test_a_run_several_cells_asked_for_is_shown_in_each_place_and_counted_once(four_runs: Path) -> None:
    manifest = json.loads((four_runs / "sweep.json").read_text())
    first = manifest["runs"][0]
    beta = json.loads((four_runs / first["dir"] / "config.json").read_text())["beta"]
    first["shown_as"] = [{"beta": 4 * beta}]
    (four_runs / "sweep.json").write_text(json.dumps(manifest))
    sweep = load(four_runs)
    assert census(sweep.runs) == "4 of 4 runs"
    (copy,) = as_dicts(sweep.runs[sweep.runs["copy_of"] == first["id"]])
    assert (copy["beta"], copy["label"]) == (4 * beta, first["label"])
    own, shown = (sweep.history[sweep.history["run"] == run].set_index("step") for run in (first["id"], copy["id"]))
    assert shown["margin"].equals(own["margin"])
    assert np.allclose(shown["rewards/margins"], 4 * own["rewards/margins"], rtol=1e-15)
    assert shown["implied_preference"].isna().all()


def test_a_run_that_says_it_runs_does_so_while_its_lock_is_held_and_was_killed_otherwise(
    write_sweep: Any, make_run: Any
) -> None:
    run = make_run(state="running", stopped_at=30)
    path = write_sweep(run)
    (path / ".locks").mkdir()
    lock = FileLock(path / ".locks" / run.id)
    with lock:
        assert state_of(load(path), run.label) == "running"
    sweep = load(path)
    assert state_of(sweep, run.label) == "interrupted"
    assert "killed" in sweep.runs["reason"].iloc[0]


def test_a_run_that_ends_while_it_is_read_was_not_killed(
    write_sweep: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says finished, then lets go of its lock: who finds the lock free finds the new status too."""
    run = make_run(state="running", stopped_at=30)
    path = write_sweep(run)

    def ends(lock: Path) -> bool:
        status = path / run.dir / "status.json"
        status.write_text(status.read_text().replace("running", "finished"))
        return False

    monkeypatch.setattr(run_directories, "_is_held", ends)
    assert state_of(load(path), run.label) == "running"
