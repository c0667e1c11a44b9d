"""The recorder turns rows of [R] tensors into columns for each run."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from src.recording import FLUSH_ROWS, Recorder


def rows(steps: int, runs: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    names = ("loss", "margin", "grad_norm")
    return [{name: torch.randn(runs, generator=generator) for name in names} for _ in range(steps)]


def recorded(given, flush_after=(), closed=None):
    """Every run's columns, joined, with a flush after some of the rows; `closed`: {row: (run, its rows)}."""
    parts: dict[int, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))

    def emit(run, columns):
        for name, values in columns.items():
            parts[run][name].append(values)

    recorder = Recorder(len(given[0]["loss"]), emit)
    for i, row in enumerate(given):
        recorder.add(row)
        if closed and i in closed:
            recorder.close_run(*closed[i])
        if i in flush_after:
            recorder.flush()
    recorder.flush()
    return {run: {name: np.concatenate(values) for name, values in columns.items()} for run, columns in parts.items()}


def test_each_run_gets_its_own_values_in_float64_with_the_step_in_front():
    given = rows(5, 2)
    for run, columns in recorded(given).items():
        assert list(columns) == ["step", "loss", "margin", "grad_norm", "nonfinite"]
        assert columns["step"].tolist() == [0, 1, 2, 3, 4]
        assert columns["margin"].dtype == np.float64
        assert columns["margin"].tolist() == [float(row["margin"][run]) for row in given]


def test_how_often_rows_are_flushed_does_not_change_the_columns():
    given = rows(7, 3)
    once = recorded(given)
    for flushes in ({0, 1, 2, 3, 4, 5, 6}, {2}, {1, 4}):
        often = recorded(given, flushes)
        for run in once:
            for name, values in once[run].items():
                assert np.array_equal(often[run][name], values)


def test_what_is_not_finite_is_counted_run_by_run_and_kept():
    given = rows(3, 2)
    given[1]["loss"][0] = torch.nan
    given[1]["margin"][0] = -torch.inf
    given[2]["margin"][1] = torch.inf
    columns = recorded(given)
    assert columns[0]["nonfinite"].tolist() == [0, 2, 0]
    assert columns[1]["nonfinite"].tolist() == [0, 0, 1]
    assert np.isnan(columns[0]["loss"][1])


def test_a_run_that_has_stopped_gets_no_more_rows_and_the_others_all_of_theirs():
    given = rows(6, 3)
    for flushes in ((), {0}, {2}, {3}, {1, 4}):
        columns = recorded(given, flushes, closed={2: (1, 3)})
        assert columns[1]["step"].tolist() == [0, 1, 2]
        assert columns[0]["step"].tolist() == columns[2]["step"].tolist() == list(range(6))


def test_a_run_that_failed_before_its_first_step_gets_no_row_at_all():
    assert sorted(recorded(rows(4, 2), closed={0: (0, 0)})) == [1]


def test_a_row_is_what_the_tensors_were_when_it_was_added():
    emitted = []
    recorder = Recorder(1, lambda run, columns: emitted.append(columns))
    seen = torch.zeros(1, dtype=torch.float64)
    for _ in range(3):
        seen += 1
        recorder.add({"tokens": seen})
    recorder.flush()
    assert emitted[0]["tokens"].tolist() == [1, 2, 3]


# ---- metrics are made of raw values, a block of steps at once


def raw_rows(steps: int, runs: int, width=lambda step: 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"logps": torch.randn(runs, 2, width(i), generator=generator), "lr": torch.full((runs,), i / 7)}
            for i in range(steps)]  # fmt: skip


def measured(block):
    assert len({len(x) for x in block.values()}) == 1
    return {"p": block["logps"].double().exp().sum((-2, -1)).log(), "lr": block["lr"]}


def emitted(given, flush_after=(), first_step=0):
    parts: dict[int, list[dict[str, np.ndarray]]] = defaultdict(list)
    recorder = Recorder(2, lambda run, columns: parts[run].append(columns), first_step, measured)
    for i, row in enumerate(given):
        recorder.add(row)
        if i in flush_after:
            recorder.flush()
    recorder.flush()
    return {run: {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
            for run, columns in parts.items()}  # fmt: skip


@pytest.mark.parametrize("width", [lambda step: 3, lambda step: 1 + step % 4, lambda step: 2 + (step > 40)])
def test_metrics_of_a_block_are_those_of_each_step(width):
    given = raw_rows(90, 2, width)
    for run, columns in emitted(given, flush_after={10, 11, 60}).items():
        assert columns["step"].tolist() == list(range(90))
        for i, row in enumerate(given):
            assert columns["p"][i] == pytest.approx(float(row["logps"][run].double().exp().sum().log()), rel=1e-14)
            assert columns["lr"][i] == float(row["lr"][run])


@pytest.mark.parametrize("bytes_of_a_block", [1, 200, 1000, 2**24])
def test_no_bit_depends_on_when_it_is_flushed_or_on_being_resumed(monkeypatch, bytes_of_a_block):
    monkeypatch.setattr("src.recording.BLOCK_BYTES", bytes_of_a_block)
    given = raw_rows(500, 2)
    once = emitted(given)
    often = emitted(given, flush_after={0, 3, 4, 77, 199, 200, 201, 333})
    resumed = emitted(given[123:], first_step=123)
    for run in once:
        for name, values in once[run].items():
            assert np.array_equal(often[run][name], values), name
            assert np.array_equal(resumed[run][name], values[123:]), name


def test_a_flush_is_due_after_so_many_rows():
    recorder = Recorder(2, lambda run, columns: None, measure=measured)
    due = []
    for row in raw_rows(FLUSH_ROWS + 1, 2):
        recorder.add(row)
        due.append(recorder.due)
    assert due[FLUSH_ROWS - 1] and due[FLUSH_ROWS]
