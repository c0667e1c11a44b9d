"""Who beat whom, and whether that determines finite scores. n items throughout; wins[i, j] = times i beat j, [n, n]."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, shortest_path

from src.errors import BadInput

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NO_TIES = "the model has no ties: leave them out (or fit a model that has them, such as Davidson 1970)"


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Counts of wins. Refuses with `BadInput`, naming the entry, what it cannot mean.

    items: n >= 2 distinct labels.
    wins: [n, n], whole numbers >= 0, zero diagonal, at least one comparison.
    home_wins: [n, n], those of the wins that the winner had at home, every other win being an away win; None if there
        is no home side. (Of a judge of pairs of responses: the one it was shown first.)
    weighted: allow fractional wins: expected wins mu(i, j) p*(i > j), say, or soft labels. Nothing else changes, so
        standard errors and deviances are those of as many comparisons as the weights add up to.
    """

    items: tuple[Hashable, ...]
    wins: Array
    home_wins: Array | None = None
    weighted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        n = len(self.items)
        if n < 2:
            raise BadInput(f"a comparison needs at least 2 items, got {n}")
        if len(set(self.items)) < n:
            raise BadInput(f"items must differ, got {self.items}")
        object.__setattr__(self, "wins", self._checked(self.wins, "wins"))
        if not self.wins.any():
            raise BadInput("no comparisons: every count of wins is 0")
        if self.home_wins is not None:
            object.__setattr__(self, "home_wins", self._checked(self.home_wins, "home_wins"))
            assert self.home_wins is not None
            for i, j in np.argwhere(self.home_wins > self.wins):
                raise BadInput(
                    f"{self.items[i]} beat {self.items[j]} {self.home_wins[i, j]:g} times at home "
                    f"but only {self.wins[i, j]:g} times in all"
                )

    def _checked(self, matrix: npt.ArrayLike, name: str) -> Array:
        n = len(self.items)
        try:
            counts = np.array(matrix, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadInput(f"{name} must be a matrix of numbers: {error}") from None
        if counts.shape != (n, n):
            raise BadInput(f"{name} must be a {n} x {n} matrix for {n} items, got shape {counts.shape}")
        for i, j in np.argwhere(~np.isfinite(counts) | (counts < 0)):
            raise BadInput(f"{name} of {self.items[i]} over {self.items[j]} must be a count >= 0, got {counts[i, j]}")
        for i in np.flatnonzero(counts.diagonal()):
            raise BadInput(f"{self.items[i]} cannot beat itself ({name}, diagonal); if that is a tie, {NO_TIES}")
        if not self.weighted:
            for i, j in np.argwhere(counts % 1 != 0):
                raise BadInput(
                    f"{name} of {self.items[i]} over {self.items[j]} must be a whole number, got {counts[i, j]:g} "
                    f"(weighted=True allows fractions); if halves stand for ties, {NO_TIES}"
                )
        counts.setflags(write=False)
        return counts

    @classmethod
    def from_matrix(
        cls, wins: npt.ArrayLike, items: Iterable[Hashable] | None = None, *, weighted: bool = False
    ) -> Comparisons:
        """From wins[i, j] = times i beat j, [n, n]. Items are called 0 .. n-1 unless named."""
        names = range(np.shape(wins)[0] if np.ndim(wins) else 0) if items is None else items
        return cls(tuple(names), np.asarray(wins), weighted=weighted)

    @classmethod
    def from_records(
        cls, records: Iterable[Sequence[Any]], items: Iterable[Hashable] | None = None, *, weighted: bool = False
    ) -> Comparisons:
        """From (winner, loser) or (winner, loser, count). Items are in the order given, or in order of appearance."""
        return cls._counted(
            ((*r[:2], *(r[2:] or (1,)), 0) for r in _rows(records, (2, 3))), items, weighted, home=False
        )

    @classmethod
    def from_fixtures(cls, fixtures: Iterable[Sequence[Any]], items: Iterable[Hashable] | None = None) -> Comparisons:
        """From (home side, away side, wins of the home side, wins of the away side)."""
        return cls._counted(_rows(fixtures, (4,)), items, weighted=False, home=True)

    @classmethod
    def _counted(
        cls, rows: Iterable[Sequence[Any]], items: Iterable[Hashable] | None, weighted: bool, home: bool
    ) -> Comparisons:
        rows = list(rows)
        for k, (first, second, *counts) in enumerate(rows):
            if first is None or second is None:
                raise BadInput(f"record {k} has no winner or no loser; if it is a tie, {NO_TIES}")
            if first == second:
                raise BadInput(f"record {k}: {first} cannot beat itself; if it is a tie, {NO_TIES}")
            for count in counts:
                if not isinstance(count, Real) or not float(count) >= 0:
                    raise BadInput(f"record {k}: a count of wins must be a number >= 0, got {count!r}; {NO_TIES}")
        seen = tuple(dict.fromkeys(item for row in rows for item in row[:2]))
        names = seen if items is None else tuple(items)
        if unknown := set(seen) - set(names):
            raise BadInput(f"items {sorted(map(str, unknown))} are compared but not among {list(map(str, names))}")
        index = {item: i for i, item in enumerate(names)}
        by_first, by_second = np.zeros((2, len(names), len(names)))
        for first, second, first_wins, second_wins in rows:
            by_first[index[first], index[second]] += float(first_wins)
            by_second[index[second], index[first]] += float(second_wins)
        return cls(names, by_first + by_second, by_first if home else None, weighted)

    @property
    def n(self) -> int:
        return len(self.items)

    @property
    def total(self) -> float:
        """Comparisons made."""
        return float(self.wins.sum())

    def index(self, item: Hashable) -> int:
        if item not in self.items:
            raise BadInput(f"unknown item {item!r}: known are {list(self.items)}")
        return self.items.index(item)

    def named(self, members: Iterable[Any]) -> str:
        return "{" + ", ".join(str(self.items[int(i)]) for i in members) + "}"


def _rows(records: Iterable[Sequence[Any]], lengths: tuple[int, ...]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [tuple(record) for record in records]
    for k, row in enumerate(rows):
        if len(row) not in lengths:
            raise BadInput(f"record {k} must have {' or '.join(map(str, lengths))} fields, got {row}")
    return rows


class NoFiniteEstimate(UserWarning):
    """Some scores, or differences of scores, are infinite or undetermined at the maximum of the likelihood."""


@dataclass(frozen=True, eq=False)
class Existence:
    """Which differences of scores the comparisons determine.

    groups: [n], same number = finite difference: the strongly connected components of "has beaten".
    components: [n], different numbers = no chain of comparisons joins the two: nothing can be said of them.
    problems: a sentence for each split that forbids a finite estimate; empty if there is none.
    """

    data: Comparisons
    groups: Ints
    components: Ints
    problems: tuple[str, ...]

    @property
    def finite(self) -> bool:
        """A finite maximum-likelihood estimate exists and is unique up to the constraint."""
        return not self.problems

    @cached_property
    def reaches(self) -> npt.NDArray[np.bool_]:
        """[n, n]: a chain i beat .. beat j."""
        return np.asarray(np.isfinite(shortest_path(csr_array(self.data.wins > 0), unweighted=True)))


def existence(data: Comparisons) -> Existence:
    """Ford (1957), Amer. Math. Monthly 64(8): the scores that maximise the likelihood are finite, and unique up to a
    shift, iff for every split of the items into two, some item of each part has beaten one of the other; that is, iff
    the graph with an edge from each winner to its loser is strongly connected. It holds for every link whose log F is
    strictly concave (probit too): what fails is a direction along which no observed win becomes less likely.
    """
    beat = csr_array(data.wins > 0)
    groups = _numbered(connected_components(beat, connection="strong")[1])
    components = _numbered(connected_components(beat, directed=False)[1])
    problems = []
    for g in range(groups.max() + 1):
        rest = (components == components[groups == g][0]) & (groups != g)
        if rest.any() and not data.wins[np.ix_(rest, groups == g)].any():
            problems.append(
                f"{data.named(np.flatnonzero(groups == g))} never lost to {data.named(np.flatnonzero(rest))}"
            )
    if components.any():
        sets = (data.named(np.flatnonzero(components == c)) for c in range(components.max() + 1))
        problems.append(f"no comparison joins {' and '.join(sets)}")
    return Existence(data, groups, components, tuple(problems))


def _numbered(labels: Ints) -> Ints:
    """The same partition, numbered in order of first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse], dtype=np.int64)
