"""Bradley-Terry scores under gradient descent: where wins separate the items they diverge, else they settle. Pure.

P(i beats j) = sigma(s_i - s_j) (Bradley & Terry 1952). wins [n, n]: how often i beat j; s [n] scores [nats]; t updates.
A finite maximum of the likelihood exists if and only if the wins connect all items both ways (Ford 1957).
"""

import numpy as np
import numpy.typing as npt
from scipy.special import expit

Array = npt.NDArray[np.float64]


def descend(wins: npt.ArrayLike, at: npt.ArrayLike, *, lr: float) -> Array:
    """Scores [T, n] after `at` [T] (rising) full-batch updates from 0 on the mean -log likelihood."""
    share = np.asarray(wins, dtype=np.float64)
    share = share / share.sum()
    wanted = np.asarray(at, dtype=np.int64)
    s, recorded, t = np.zeros(len(share)), np.empty((len(wanted), len(share))), 0
    for row, goal in enumerate(wanted):
        for _ in range(goal - t):
            pull = share * expit(s[None, :] - s[:, None])
            s = s + lr * (pull.sum(1) - pull.sum(0))
        t = int(goal)
        recorded[row] = s
    return recorded


def estimate(wins: npt.ArrayLike, iterations: int = 10_000) -> Array:
    """The scores of greatest likelihood [n], with sum 0, where they are finite: Zermelo's iteration (Hunter 2004)."""
    counts = np.asarray(wins, dtype=np.float64)
    games, won, strength = counts + counts.T, counts.sum(1), np.ones(len(counts))
    for _ in range(iterations):
        updated = won / (games / (strength[:, None] + strength)).sum(1)
        updated /= np.exp(np.log(updated).mean())
        if np.abs(updated / strength - 1).max() < 1e-14:
            break
        strength = updated
    return np.asarray(np.log(strength))


def chain_asymptote(t: npt.ArrayLike, *, lr: float) -> Array:
    """[T, 3] of three items, each pair compared once and the first always better: s -> +-log(lr t/3) and 0.

    Descent goes to the largest margin, (1, 0, -1) (Soudry et al. 2018, arXiv 1710.10345, Theorem 3): a gap of 1 to each
    neighbour. Along it each neighbouring pair pulls with (1/3) e^{-gap} = 1/(lr t), and the third one with nothing.
    """
    top = np.log(lr * np.asarray(t, dtype=np.float64) / 3)
    return np.stack([top, np.zeros_like(top), -top], axis=-1)
