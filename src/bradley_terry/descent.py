"""Gradient descent on the mean -log likelihood, for a fixed number of epochs. n items; K recorded epochs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from src.bradley_terry.comparisons import Array, Comparisons, Ints
from src.bradley_terry.likelihood import link_named, nll
from src.errors import BadInput


@dataclass(frozen=True, eq=False)
class Descent:
    """epochs: [K] full-batch updates made. scores: [K, n] then; the reference has 0, or they sum to 0.

    left: why the descent ended early, or "". It can with strengths only: an update would have made one <= 0.
    """

    data: Comparisons
    link: str
    epochs: Ints
    scores: Array
    left: str = ""

    @property
    def strengths(self) -> Array:
        """alpha = exp(s), [K, n]."""
        return np.exp(self.scores)

    @property
    def losses(self) -> Array:
        """Mean -log likelihood of a comparison, nats, [K]."""
        return nll(self.data, self.scores, link=self.link) / self.data.total


def descend(
    data: Comparisons,
    *,
    epochs: int,
    lr: float,
    parametrisation: str = "scores",
    link: str = "logistic",
    reference: Hashable | None = None,
    start: npt.ArrayLike | None = None,
    at: Iterable[int] | None = None,
) -> Descent:
    """Full-batch gradient descent from equal scores (or from `start`, scores [n]).

    parametrisation: "scores", updating s with P(i beats j) = F(s_i - s_j); or "strengths", updating alpha with
        P(i beats j) = alpha_i / (alpha_i + alpha_j), logistic link only. The same function of s = log alpha, but
        not the same path: a step in alpha_i is one in s_i with lr / alpha_i^2.
    reference: an item that is not updated, its score 0 (its strength 1). None: all are updated, and the scores are
        given with sum 0, which in "scores" every update keeps by itself.
    at: the epochs to record; every one from 0 to `epochs` by default.

    There is no upper bound on the scores where no finite estimate exists: see `divergence`. An item that never won has
    its strength, on the other hand, reach 0 in finitely many epochs, where it ends (`Descent.left`).
    Raises BadInput for values out of range.
    """
    if epochs < 0:
        raise BadInput(f"epochs must be >= 0, got {epochs}")
    if not (np.isfinite(lr) and lr > 0):
        raise BadInput(f"lr must be > 0, got {lr}")
    if data.home_wins is not None:
        raise BadInput("gradient descent knows no home advantage: use `fit`, or leave out home_wins")
    steps = {"scores": _score_gradient, "strengths": _strength_gradient}
    if parametrisation not in steps:
        raise BadInput(f"unknown parametrisation {parametrisation!r}: one of {', '.join(steps)}")
    s = np.zeros(data.n) if start is None else np.array(start, dtype=np.float64)
    if s.shape != (data.n,) or not np.isfinite(s).all():
        raise BadInput(f"start must be {data.n} finite scores, got {start!r}")
    wanted = np.arange(epochs + 1) if at is None else np.unique(np.fromiter(at, dtype=np.int64))
    if wanted.size and not 0 <= wanted[0] <= wanted[-1] <= epochs:
        raise BadInput(f"epochs to record must be between 0 and {epochs}, got {wanted[0]} to {wanted[-1]}")

    positive = parametrisation == "strengths"
    gradient = steps[parametrisation](data, link)
    free = np.ones(data.n)
    if reference is not None:
        s -= s[data.index(reference)]
        free[data.index(reference)] = 0
    rate = lr * free
    theta = np.exp(s) if positive else s
    recorded = np.empty((len(wanted), data.n))
    done, left = 0, ""
    for epoch in range(epochs + 1):
        if done < len(wanted) and wanted[done] == epoch:
            recorded[done] = theta
            done += 1
        if done == len(wanted):
            break
        updated = theta - rate * gradient(theta)
        if positive and updated.min() <= 0:
            worst = int(updated.argmin())
            left = f"update {epoch + 1} would make the strength of {data.items[worst]} {updated[worst]:.3g}"
            break
        theta = updated
    scores = np.log(recorded[:done]) if positive else recorded[:done]
    if reference is None:
        scores = scores - scores.mean(1, keepdims=True)
    return Descent(data, link, wanted[:done], scores, left)


def _score_gradient(data: Comparisons, link: str) -> Callable[[Array], Array]:
    """s [n] -> gradient [n] of the mean -log likelihood."""
    slope, share = link_named(link).slope, data.wins / data.total

    def gradient(s: Array) -> Array:
        pull = share * slope(s[:, None] - s)
        return np.asarray(pull.sum(0) - pull.sum(1))

    return gradient


def _strength_gradient(data: Comparisons, link: str) -> Callable[[Array], Array]:
    """alpha [n] -> gradient [n]: sum_j n_ij / (alpha_i + alpha_j) - wins_i / alpha_i, over the comparisons made."""
    if link != "logistic":
        raise BadInput(f"strengths belong to the logistic link, not to {link!r}")
    games, won = (data.wins + data.wins.T) / data.total, data.wins.sum(1) / data.total

    def gradient(alpha: Array) -> Array:
        return np.asarray((games / (alpha[:, None] + alpha)).sum(1) - won / alpha)

    return gradient
