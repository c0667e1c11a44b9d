"""The same rows in W&B: read back from its own files, and never a reason to lose a run."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from src.config import Destination
from src.launching.local import launch
from src.launching.plan import Cell
from src.tracking import SUMMARIES, Wandb
from tests.conftest import TOY

STEPS = 250  # more rows than one flush, and a file of more than one block
BLOCK, HEADER = 32768, 7


def records(path: Path) -> list[Record]:
    """W&B's transaction log: LevelDB's log format after seven bytes of W&B's own (wandb 0.31 has no reader in Python).

    Blocks of 32 KiB hold chunks: checksum (4 bytes), length (2), type (1): 1 a whole record, 2 its first part, 3 a
    middle one, 4 the last. No chunk begins in a block's last six bytes.
    """
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    found, parts, at = [], b"", HEADER
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in {1, 4}:
            found.append(Record.FromString(parts))
            parts = b""
    return found


class Mirrored:
    """One run: its directory, and what W&B wrote about it."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.history = pa.ipc.open_stream((directory / "history.arrow").read_bytes()).read_all()
        (self.file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
        self.records = records(self.file)
        (self.run,) = (r.run for r in self.records if r.WhichOneof("record_type") == "run")

    @property
    def rows(self) -> list[dict[str, Any]]:
        logged = (r.history for r in self.records if r.WhichOneof("record_type") == "history")
        return [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item} for row in logged]

    @property
    def metrics(self) -> dict[str, Any]:
        defined = (r.metric for r in self.records if r.WhichOneof("record_type") == "metric")
        return {metric.name or metric.glob_name: metric for metric in defined}

    @property
    def exit_code(self) -> int:
        (end,) = (r.exit for r in self.records if r.WhichOneof("record_type") == "exit")
        return end.exit_code


@pytest.fixture(scope="module")
def folder(convert, tmp_path_factory) -> Path:
    """A sweep of three runs, one of which diverges, mirrored offline."""
    output = tmp_path_factory.mktemp("outputs")
    toy = [*(o for o in TOY if not o.startswith(("tracking", "steps"))), "tracking=wandb_offline", f"steps={STEPS}"]
    cells = [(*toy, *own.split()) for own in ("loss=dpo", "loss=ipo beta=0.5", "loss=ipo lr=1e30")]
    assert launch([Cell(convert(*c), c) for c in cells], Destination(output=str(output), sweep="a-sweep"), []) == 0
    wandb.teardown()  # ends W&B's own process, which has then written everything
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
        for name, values in columns.items():
            logged = [row[name] for row in run.rows]
            assert np.array_equal(np.array(logged, float), np.array(values, float), equal_nan=True), name


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
        attached = {item.key: json.loads(item.value_json) for item in run.run.config.update}
        for key, value in run.config.items():
            if key not in {"format", "tracking", "compute"}:
                assert attached[key] == value, key
        assert attached["loss"]["beta"] == run.config["loss"]["beta"]


def test_curves_are_drawn_over_step_and_summarised_by_their_worst_and_last_value(mirrored):
    metrics = mirrored[0].metrics
    assert metrics["step"].options.hidden
    assert metrics["*"].step_metric == "step"
    for name, wanted in SUMMARIES.items():
        summary = metrics[name].summary
        asked = {how for how in ("min", "max", "mean", "last", "first", "copy", "none") if getattr(summary, how)}
        assert asked == set(wanted.split(","))
        assert name in mirrored[0].history.schema.names  # or it would summarise nothing


def test_a_diverged_run_has_not_crashed(mirrored):
    assert [run.exit_code for run in mirrored] == [0, 0, 0]


def test_wandb_keeps_to_its_folder_in_the_run_directory_without_copies_and_links(folder, mirrored):
    for run in mirrored:
        files = {path.relative_to(run.file.parent).as_posix() for path in run.file.parent.rglob("*") if path.is_file()}
        assert {name for name in files if not name.startswith("logs/")} == {run.file.name}
        assert [path.name for path in run.file.parent.parent.iterdir()] == [run.file.parent.name]
    assert not Path("wandb").exists()


def test_wandb_leaves_no_settings_in_the_home_folder(cli, tmp_path):
    """Its process keeps a log of its own in the cache folder, a few lines each."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    done = cli(*TOY[:-2], "steps=2", "tracking=wandb_offline", cwd=work, HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in work.iterdir()] == ["outputs"]
    left = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    assert all(path.startswith(".cache/wandb/logs/core-debug-") for path in left), left


# ---- never a reason to lose a run

TRACKED = f"{' '.join(TOY[:-2])} steps=5 tracking=wandb_offline"


def state(folder: Path) -> tuple[str, int]:
    (run,) = json.loads((folder / "sweep.json").read_text())["runs"]
    status = json.loads((folder / run["dir"] / "status.json").read_text())
    return status["state"], status["steps_done"]


@pytest.mark.parametrize("error", [wandb.Error("no service"), OSError("no space left"), RuntimeError("whatever else")])
def test_a_wandb_that_cannot_start_does_not_stop_training_and_this_is_said(sweep, tmp_path, monkeypatch, caplog, error):
    def init(**kwargs):
        raise error

    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        assert sweep(TRACKED) == 0
    assert state(tmp_path / "s") == ("finished", 5)
    assert f"W&B is off for dpo: {type(error).__name__}: {error}" in caplog.text


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


def test_the_wandb_id_tells_two_sweeps_of_the_same_run_apart(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(wandb, "init", lambda **kwargs: given.append(kwargs) or (_ for _ in ()).throw(wandb.Error("x")))
    for sweep in ("lr-study", "lr-study", "beta-study"):
        Wandb(mode="online", project="p", entity=None).start({"id": "8c1f", "sweep": sweep, "label": "l"}, tmp_path)
    first, again, other = (kwargs["id"] for kwargs in given)
    assert first == again != other
    assert all(id.startswith("8c1f-") for id in (first, other))
    assert {kwargs["mode"] for kwargs in given} == {"online"}
