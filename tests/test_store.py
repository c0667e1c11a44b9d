"""The run directory: whatever is cut off, what was flushed can be read (docs/run-directory.md)."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from src.store import EVALUATIONS, PROBES, SAMPLES, RunDirectory, provenance, read_samples, read_stream, write_json


def columns(first: int, rows: int) -> dict[str, np.ndarray]:
    steps = np.arange(first, first + rows)
    return {"step": steps, "loss": steps / 7, "tokens": steps * 8.0, "pairs": steps * 1.0, "nonfinite": steps * 0}


def read(content: bytes) -> list[int]:
    """The steps of every whole record batch, by pyarrow alone."""
    steps: list[int] = []
    try:
        stream = pa.ipc.open_stream(content)
        while True:
            steps += stream.read_next_batch()["step"].to_pylist()
    except (StopIteration, pa.ArrowInvalid, OSError):
        return steps


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    made = RunDirectory(tmp_path / "run")
    made.create({"id": "x"}, ["loss=dpo"])
    yield made
    made.end("interrupted")  # closes the file


def test_a_history_cut_off_at_any_byte_keeps_every_batch_that_was_whole(directory):
    file = directory.path / "history.arrow"
    flushed = {}
    for first in (0, 3, 6):
        directory.append(columns(first, 3))
        flushed[file.stat().st_size] = first + 3
    content = file.read_bytes()
    for size in range(len(content) + 1):
        rows = max([rows for length, rows in flushed.items() if length <= size], default=0)
        assert read(content[:size]) == list(range(rows)), size


def test_rows_can_be_read_while_the_run_goes_on(directory):
    directory.append(columns(0, 5))
    assert read((directory.path / "history.arrow").read_bytes()) == [0, 1, 2, 3, 4]


def test_counts_are_integers_and_all_else_is_float64(directory):
    directory.append(columns(0, 3))
    directory.end("finished")
    schema = pa.ipc.open_stream((directory.path / "history.arrow").read_bytes()).schema
    assert {field.name: str(field.type) for field in schema} == {
        "step": "int64", "loss": "double", "tokens": "int64", "pairs": "int64", "nonfinite": "int64",
    }  # fmt: skip


def test_not_a_number_and_infinity_are_kept_as_they_are(directory):
    directory.append({"step": np.arange(3), "loss": np.array([np.nan, np.inf, -np.inf])})
    directory.end("diverged")
    table = pa.ipc.open_stream((directory.path / "history.arrow").read_bytes()).read_all()
    np.testing.assert_array_equal(table["loss"].to_numpy(), [np.nan, np.inf, -np.inf])


def test_a_json_file_is_never_seen_half_written(tmp_path, monkeypatch):
    """If writing breaks off, the old content is still there."""
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})
    monkeypatch.setattr(Path, "replace", lambda self, target: pytest.fail("not reached"))
    with pytest.raises(TypeError):
        write_json(path, {"state": object()})
    assert json.loads(path.read_text()) == {"state": "running"}


def test_a_json_file_is_written_under_another_name_in_the_same_folder_and_renamed(tmp_path, monkeypatch):
    seen = []
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (seen.append((self, target)), rename(self, target))[1])
    write_json(tmp_path / "status.json", {"state": "running"})
    ((temporary, target),) = seen
    assert target == tmp_path / "status.json"
    assert temporary.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_the_state_goes_from_planned_to_running_to_its_end(directory):
    assert directory.state == "planned"
    directory.start({"pairs": 1}, stack=4)
    assert directory.state == "running"
    directory.append(columns(0, 2))
    directory.end("diverged", step=1, reason="the loss is not finite at step 1", steps_done=2)
    status = json.loads((directory.path / "status.json").read_text())
    assert (status["format"], status["state"], status["step"], status["stack"]) == (1, "diverged", 1, 4)
    assert status["started"] <= status["ended"]


def test_the_last_status_is_written_after_the_history_is_closed(directory, monkeypatch):
    directory.append(columns(0, 2))
    sizes = []
    file = directory.path / "history.arrow"
    monkeypatch.setattr(directory, "update", lambda **status: sizes.append(file.stat().st_size))
    directory.end("finished")
    assert sizes == [file.stat().st_size]


@pytest.mark.parametrize("content", [None, "", '{"format": 1, "sta', "[]", "{}"])
def test_a_directory_without_a_readable_status_has_no_state(tmp_path, content):
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert RunDirectory(tmp_path).state is None


def test_a_file_in_the_place_of_a_run_directory_has_no_state(tmp_path):
    (tmp_path / "occupied").write_text("")
    assert RunDirectory(tmp_path / "occupied").state is None


def test_creating_a_directory_removes_what_an_unfinished_attempt_left(directory):
    directory.append(columns(0, 2))
    again = RunDirectory(directory.path)
    again.create({"id": "x"}, [])
    assert sorted(path.name for path in again.path.iterdir()) == ["config.json", "provenance.json", "status.json"]


def evaluated(directory: RunDirectory, *steps: int) -> None:
    """Evaluations at these steps: two probes and a sample each."""
    for step in steps:
        probes = {"step": np.array([step] * 2), "set": np.array(["train", "held_out"]), "pair": np.array([0, 3])}
        directory.append(probes, PROBES)
        directory.append_samples([{"step": step, "answer": "a line\u2028that is one\n"}])
        directory.append({"step": np.array([step]), "eval/margin": np.array([step / 7])}, EVALUATIONS)


def test_going_on_from_a_step_cuts_off_what_came_after_it_in_every_file(directory):
    directory.append(columns(0, 7))
    evaluated(directory, 0, 3, 6)
    with (directory.path / SAMPLES).open("a") as file:
        file.write('{"step": 9, "ans')
    again = RunDirectory(directory.path)
    found = again.resume(6, 1, 6, every=3)
    assert found is not None
    history, evaluations = found
    assert history["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert (evaluations["step"].tolist(), evaluations["eval/margin"].tolist()) == ([0, 3], [0, 3 / 7])
    again.append(columns(6, 1))
    evaluated(again, 6)
    again.end("finished")
    assert read((directory.path / "history.arrow").read_bytes()) == list(range(7))
    assert read((directory.path / EVALUATIONS).read_bytes()) == [0, 3, 6]
    probes = read_stream(directory.path, PROBES)
    assert probes is not None
    assert probes["step"].to_pylist() == [0, 0, 3, 3, 6, 6]
    assert probes["set"].to_pylist() == ["train", "held_out"] * 3
    assert [row["step"] for row in read_samples(directory.path)] == [0, 3, 6]
    assert read_samples(directory.path)[0]["answer"] == "a line\u2028that is one\n"
    assert not [path for path in directory.path.iterdir() if path.name.startswith(".")]


def test_a_run_with_fewer_evaluations_than_a_checkpoint_stands_on_is_left_as_it_is(directory):
    directory.append(columns(0, 7))
    evaluated(directory, 0)
    before = {path.name: path.read_bytes() for path in directory.path.iterdir()}
    assert RunDirectory(directory.path).resume(6, 1, 6, every=3) is None
    assert RunDirectory(directory.path).resume(8, 1, 8, every=None) is None
    assert {path.name: path.read_bytes() for path in directory.path.iterdir()} == before


def test_provenance_names_code_libraries_and_machine(directory):
    written = json.loads((directory.path / "provenance.json").read_text())
    assert written["command"] == ["loss=dpo"]
    assert {"git_commit", "git_dirty", "python", "platform", "cpu_count"} <= written.keys()
    assert set(provenance()["libraries"]) >= {"torch", "hydra-core", "wandb", "pyarrow"}
