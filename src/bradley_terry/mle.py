"""Maximum likelihood by Newton's method. n items; P parameters: n scores, and the home advantage if any."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linprog
from scipy.special import xlogy

from src.bradley_terry.comparisons import Array, Comparisons, Existence, NoFiniteEstimate, existence
from src.bradley_terry.likelihood import Likelihood, games, link_named, venues
from src.errors import BadInput


@dataclass(frozen=True, eq=False)
class Fit:
    """The maximum-likelihood estimate of P(i beats j) = F(s_i - s_j + home), home = +h, -h or absent.

    scores: [n]; `reference` has 0, or the scores sum to 0 if there is no reference. Where no finite estimate exists
        (`existence.problems` says why; `fit` has warned) this holds in each of `existence.groups` by itself, and scores
        of different groups must not be subtracted: `probabilities` knows what can be said.
    covariance: [n, n] inverse of the expected (Fisher) information, under the same constraint.
    home, home_se: the home advantage, on the scale of the scores; None without home sides.
    nll: -log likelihood in nats, without binomial coefficients; its infimum where that is not attained.
    deviance, df: residual, of the counts for each pair of items (for each home and away side) against one probability
        each. null_deviance, null_df: the same for "every comparison is a coin toss".
    """

    data: Comparisons
    existence: Existence
    link: str
    reference: Hashable | None
    scores: Array
    covariance: Array
    home: float | None
    home_se: float | None
    nll: float
    deviance: float
    df: int
    null_deviance: float
    null_df: int

    @property
    def se(self) -> Array:
        """Standard errors of the scores, [n]; 0 for the reference."""
        return np.asarray(np.sqrt(self.covariance.diagonal().clip(min=0)))

    @property
    def strengths(self) -> Array:
        """alpha = exp(s), [n]: with the logistic link, P(i beats j) = alpha_i / (alpha_i + alpha_j)."""
        return np.exp(self.scores)

    @cached_property
    def probabilities(self) -> Array:
        """[n, n], P(i beats j) where neither is at home. Exactly 1 or 0 where the estimate is infinite; NaN on the
        diagonal and where the comparisons do not determine it."""
        p = np.asarray(link_named(self.link).cdf(self.scores[:, None] - self.scores))
        reaches = self.existence.reaches
        p = np.where(reaches & reaches.T, p, np.where(reaches, 1.0, np.where(reaches.T, 0.0, np.nan)))
        np.fill_diagonal(p, np.nan)
        return p

    def probability(self, winner: Hashable, loser: Hashable) -> float:
        return float(self.probabilities[self.data.index(winner), self.data.index(loser)])


def fit(data: Comparisons, *, link: str = "logistic", reference: Hashable | None = None) -> Fit:
    """The maximum-likelihood estimate.

    link: "logistic" (Bradley & Terry 1952) or "probit" (Thurstone 1927, Mosteller 1951), equations in `LINKS`.
    reference: the item whose score is 0. None: the scores sum to 0.

    Warns `NoFiniteEstimate` where Ford's condition fails, and then gives what the likelihood still determines.
    Raises BadInput for an unknown link or reference, and if there are home sides and no finite, unique estimate.
    """
    link_named(link)
    pinned = None if reference is None else data.index(reference)
    exists = existence(data)
    if data.home_wins is not None:
        _refuse_undetermined_home(data, exists)
    elif not exists.finite:
        warnings.warn(f"no finite estimate: {'; '.join(exists.problems)}", NoFiniteEstimate, stacklevel=2)

    likelihood, theta, null = maximise_within_groups(data, exists, link)
    n, at_home = data.n, data.home_wins is not None
    information = likelihood.information(theta)
    size = information.diagonal().max() or 1.0  # any number would do but for rounding
    covariance = np.linalg.inv(information + size * null @ null.T) - null @ null.T / size
    if pinned is not None:
        mates = np.flatnonzero(exists.groups == exists.groups[pinned])
        theta[mates] -= theta[pinned]
        covariance[mates] -= covariance[pinned].copy()
        covariance[:, mates] -= covariance[:, [pinned]].copy()
    # Where a win is certain it costs nothing, here and in the saturated model: only wins within a group are counted.
    saturated = float(sum(xlogy(w, p).sum() for w, p in likelihood.proportions()))
    minimum = likelihood.nll(theta)
    rows = sum(int(np.count_nonzero(g)) for g in games(data)) // 2
    return Fit(
        data=data,
        existence=exists,
        link=link,
        reference=reference,
        scores=theta[:n],
        covariance=covariance[:n, :n],
        home=float(theta[n]) if at_home else None,
        home_se=float(np.sqrt(covariance[n, n])) if at_home else None,
        nll=minimum,
        deviance=2 * (minimum + saturated),
        df=rows - (likelihood.P - 1 - int(exists.components.max())),
        null_deviance=2 * (data.total * float(np.log(2)) + saturated),
        null_df=rows,
    )


def maximise_within_groups(data: Comparisons, exists: Existence, link: str) -> tuple[Likelihood, Array, Array]:
    """The finite part of the estimate: wins within each group only, the scores of each group summing to 0.

    Gives that likelihood, the parameters [P], and orthonormal directions that change nothing, one a group: [P, groups].
    """
    groups = exists.groups
    likelihood = Likelihood(data, link_named(link), groups[:, None] == groups)
    null = np.zeros((likelihood.P, groups.max() + 1))
    null[np.arange(data.n), groups] = 1 / np.sqrt(np.bincount(groups)[groups])
    return likelihood, newton(likelihood.derivatives, np.zeros(likelihood.P), null), null


def newton(derivatives: Callable[[Array], tuple[float, Array, Array]], start: Array, null: Array) -> Array:
    """Minimise a convex function that is constant along the orthonormal columns of `null` [P, K]; start [P] -> [P].

    Newton's method with backtracking. The step stays orthogonal to `null`, so that constraint is the start's. No step
    is longer than 5 nats: curvatures change by e^5 over that.
    """
    x, flat = start, null @ null.T
    value, gradient, hessian = derivatives(x)
    scale, unresolved = abs(value), 0
    for _ in range(500):
        step = -np.linalg.solve(hessian + flat * (hessian.diagonal().max() or 1.0), gradient)
        size = min(1.0, 5.0 / max(float(np.abs(step).max()), 5.0))
        decrement = -float(gradient @ step)
        resolved = decrement > 1e-12 * max(scale, abs(value))  # below, rounding hides what a step does to the value
        unresolved += not resolved
        # Counts so uneven that rounding moves x by more than 1e-9 leave standard errors far larger: 50 steps will do.
        if not resolved and (np.abs(step).max() <= 1e-9 * (1 + np.abs(x).max()) or unresolved > 50):
            return np.asarray(x + step)
        while (trial := derivatives(x + size * step))[0] > value - 0.25 * size * decrement and resolved:
            size /= 2
        x, (value, gradient, hessian) = x + size * step, trial
    raise ArithmeticError("Newton's method did not converge in 500 steps")


def _refuse_undetermined_home(data: Comparisons, exists: Existence) -> None:
    """With a home advantage the win graph is not enough: look for a direction that no observed win speaks against."""
    if not exists.finite:
        raise BadInput(f"no finite estimate: {'; '.join(exists.problems)}")
    rows = []
    for x, w in venues(data):
        for i, j in np.argwhere(w > 0):
            row = np.zeros(data.n + 1)
            row[i], row[j], row[data.n] = 1, -1, x
            rows.append(row)
    X = np.array(rows)
    if np.linalg.matrix_rank(X) < data.n:
        raise BadInput("the home advantage cannot be told from the scores: let items meet at both venues")
    # Albert & Anderson 1984, Biometrika 71: infinite iff some d has X d >= 0 and not X d = 0.
    found = linprog(-X.sum(0), A_ub=np.vstack([-X, X]), b_ub=np.repeat([0.0, 1.0], len(X)), bounds=(None, None))
    if found.fun < -1e-6:
        raise BadInput("no finite estimate with a home advantage: some scores and it can grow together for ever")
