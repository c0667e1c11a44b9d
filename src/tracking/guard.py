"""W&B is a mirror, never a reason to lose a run: where it fails or hangs, training goes on without it and says so."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

log = logging.getLogger("src.tracking")


class Tracker(Protocol):
    """One run's mirror of its history."""

    def log(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append a row a step. All columns are equally long, and `step` is one of them."""

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table, of numbers and texts, at a step whose row is not past."""

    def finish(self, exit_code: int) -> None: ...


class Guarded:
    """A tracker that is given up, with one warning, the first time it fails."""

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self._name, self._begin = name, begin
        self._tracker: Tracker | None = None
        self.given_up = False

    def begin(self) -> None:
        with self._giving_up():
            self._tracker = self._begin()

    def log(self, columns: Mapping[str, np.ndarray]) -> None:
        if self._tracker is not None:
            with self._giving_up():
                self._tracker.log(columns)

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._tracker is not None:
            with self._giving_up():
                self._tracker.table(name, step, columns, rows)

    def finish(self, exit_code: int) -> None:
        if self._tracker is not None:
            with self._giving_up():
                self._tracker.finish(exit_code)

    def give_up(self, error: Exception) -> None:
        self._tracker = None
        if not self.given_up:
            log.warning("W&B is off for %s: %s: %s", self._name, type(error).__name__, " ".join(str(error).split()))
        self.given_up = True

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever is wrong with the mirror, the run itself goes on
            self.give_up(error)
