"""The two links, and the log-likelihood of scores. Scores are log-odds [nats] for the logistic link."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_expit, log_ndtr, ndtr

from src.bradley_terry.comparisons import Array, Comparisons
from src.errors import BadInput


@dataclass(frozen=True)
class Link:
    """P(i beats j) = F(s_i - s_j), F symmetric: F(-u) = 1 - F(u). All fields are elementwise."""

    cdf: Callable[[Array], Array]
    log_cdf: Callable[[Array], Array]
    slope: Callable[[Array], Array]  # (log F)'
    curvature: Callable[[Array], Array]  # -(log F)''


def _logistic_curvature(u: Array) -> Array:
    return np.asarray(expit(u) * expit(-u))


def _mills(u: Array) -> Array:
    """phi(u) / Phi(u), in logs: both underflow at u = -39."""
    return np.asarray(np.exp(-u * u / 2 - math.log(2 * math.pi) / 2 - log_ndtr(u)))


LINKS = {
    # Zermelo 1929; Bradley & Terry 1952, Biometrika 39: exp(s_i) / (exp(s_i) + exp(s_j)). Gumbel noise on each score.
    "logistic": Link(expit, log_expit, lambda u: np.asarray(expit(-u)), _logistic_curvature),
    # Thurstone 1927, case V; Mosteller 1951. Gaussian noise, of variance 1/2 on each score so that F is Phi itself.
    "probit": Link(ndtr, log_ndtr, _mills, lambda u: _mills(u) * (u + _mills(u))),
}


def link_named(name: str) -> Link:
    if name not in LINKS:
        raise BadInput(f"unknown link {name!r}: one of {', '.join(LINKS)}")
    return LINKS[name]


def nll(data: Comparisons, scores: npt.ArrayLike, *, link: str = "logistic") -> Array:
    """-log likelihood of every comparison in its order (no binomial coefficients), home or away alike, in nats.

    scores: [..., n] -> [...].
    """
    F = link_named(link)
    s = np.asarray(scores, dtype=np.float64)
    winner, loser = np.nonzero(data.wins)
    return np.asarray(-(F.log_cdf(s[..., winner] - s[..., loser]) @ data.wins[winner, loser]))


def venues(data: Comparisons) -> list[tuple[float, Array]]:
    """(what the home advantage is multiplied by for the winner, wins [n, n])."""
    if data.home_wins is None:
        return [(0.0, data.wins)]
    return [(1.0, data.home_wins), (-1.0, data.wins - data.home_wins)]


def games(data: Comparisons) -> list[Array]:
    """For each of `venues`, the comparisons that could have ended in such a win, [n, n]."""
    wins = [w for _, w in venues(data)]
    return [w + other.T for w, other in zip(wins, reversed(wins), strict=True)]


class Likelihood:
    """-log likelihood of theta = (scores [n], home) counting the wins within groups, with its derivatives."""

    def __init__(self, data: Comparisons, link: Link, together: Array) -> None:
        self.link = link
        self.n = data.n
        self.P = data.n + (data.home_wins is not None)
        self.wins = [(x, w * together) for x, w in venues(data)]
        self.games = [g * together for g in games(data)]

    def _gaps(self, theta: Array, x: float) -> Array:
        s = theta[: self.n]
        return np.asarray(s[:, None] - s + (x * theta[self.n] if x else 0.0))

    def nll(self, theta: Array) -> float:
        return -float(sum((w * self.link.log_cdf(self._gaps(theta, x))).sum() for x, w in self.wins))

    def derivatives(self, theta: Array) -> tuple[float, Array, Array]:
        """Value, gradient [P], Hessian [P, P] (observed information)."""
        gradient, hessian = np.zeros(self.P), np.zeros((self.P, self.P))
        for x, w in self.wins:
            u = self._gaps(theta, x)
            slope = w * self.link.slope(u)
            gradient[: self.n] -= slope.sum(1) - slope.sum(0)
            gradient[self.n :] -= x * slope.sum()
            hessian += self._quadratic(x, w * self.link.curvature(u))
        return self.nll(theta), gradient, hessian

    def information(self, theta: Array) -> Array:
        """Expected (Fisher) information [P, P]. The same as the Hessian for the logistic link, not for probit."""
        total = np.zeros((self.P, self.P))
        for (x, _), compared in zip(self.wins, self.games, strict=True):
            u = self._gaps(theta, x)
            total += self._quadratic(x, compared * self.link.cdf(u) * self.link.slope(u) ** 2)
        return total

    def _quadratic(self, x: float, weight: Array) -> Array:
        """sum over i, j of weight_ij v v^T, v = e_i - e_j + x e_home, [P, P]."""
        n = self.n
        form = np.zeros((self.P, self.P))
        form[:n, :n] = np.diag(weight.sum(0) + weight.sum(1)) - weight - weight.T
        form[n:, :n] = x * (weight.sum(1) - weight.sum(0))
        form[:n, n:] = form[n:, :n].T
        form[n:, n:] = x * x * weight.sum()
        return form

    def proportions(self) -> list[tuple[Array, Array]]:
        """Wins and the share of comparisons that they are, for each venue."""
        return [(w, w / np.where(g > 0, g, 1)) for (_, w), g in zip(self.wins, self.games, strict=True)]
