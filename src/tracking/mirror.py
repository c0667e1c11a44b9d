"""A run's history and its evaluations as W&B takes them: one row a step, in order."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from src.tracking.guard import Tracker

Columns = Mapping[str, np.ndarray]


class Mirror:
    """Puts what an evaluation found into the row of its step, which comes after it."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._waiting: Columns = {}

    def log(self, columns: Columns) -> None:
        """Rows of the history, as they follow one another."""
        if not len(columns.get("step", ())):
            return
        first = 0
        if self._waiting and self._waiting["step"][0] == columns["step"][0]:
            self._tracker.log({**{name: values[:1] for name, values in columns.items()}, **self._waiting})
            self._waiting, first = {}, 1
        if first < len(columns["step"]):
            self._tracker.log({name: values[first:] for name, values in columns.items()})

    def evaluated(self, row: Columns, answers: Sequence[Mapping[str, Any]]) -> None:
        """One evaluation: `step` and its metrics, and what was answered. All rows before that step were logged."""
        if answers:
            values = [list(answer.values()) for answer in answers]
            self._tracker.table("samples", int(row["step"][0]), list(answers[0]), values)
        if len(row) > 1:
            self._waiting = row

    def replay(self, history: Columns, evaluations: Columns, answers: Sequence[Mapping[str, Any]]) -> None:
        """All that an earlier attempt wrote."""
        told = 0
        for n, step in enumerate(evaluations.get("step", ())):
            self.log({name: values[told:step] for name, values in history.items()})
            row = {name: values[n : n + 1] for name, values in evaluations.items()}
            self.evaluated(row, [answer for answer in answers if answer["step"] == step])
            told = step
        self.log({name: values[told:] for name, values in history.items()})

    def finish(self, exit_code: int) -> None:
        if self._waiting:  # the last evaluation comes after the last update: its row holds nothing else
            self._tracker.log(self._waiting)
        self._waiting = {}
        self._tracker.finish(exit_code)
