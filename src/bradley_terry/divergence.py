"""Where gradient descent on Bradley-Terry scores goes when there is no finite estimate, and how fast."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog, nnls
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from src.bradley_terry.comparisons import Array, Comparisons, Existence, Ints, existence
from src.bradley_terry.mle import maximise_within_groups, newton
from src.errors import BadInput

TIGHT = 1e-8  # a constraint or multiplier nearer than this to its bound is on it; all are of order 1


@dataclass(frozen=True, eq=False)
class Divergence:
    """scores(t) -> slopes log(lr t) + offsets, for t full-batch updates at `lr` on the mean -log likelihood.

    slopes: [n], d score / d log t: the solution of
            minimise |w|^2 subject to w_i - w_j >= 1 for every i that beat j and never lost to it through others,
                                      w_i = w_j within a group (`Existence.groups`);
        0 where the estimate is finite.
    offsets: [n], nats; the estimate itself where it is finite; NaN where the limit depends on the whole path (some part
        of the items is held to the rest by no win whose gap grows as slowly as log t).
    """

    existence: Existence
    slopes: Array
    offsets: Array

    @property
    def direction(self) -> Array:
        """The max-margin direction, [n], of length 1; zeros if nothing diverges."""
        length = float(np.linalg.norm(self.slopes))
        return self.slopes / length if length else self.slopes

    def scores(self, epochs: npt.ArrayLike, *, lr: float) -> Array:
        """The prediction after `epochs` [...] updates, [..., n]. Off by O(1/t) in its logarithms at best."""
        t = np.asarray(epochs, dtype=np.float64)
        return np.asarray(np.log(lr * t)[..., None] * self.slopes + self.offsets)


def divergence(data: Comparisons, *, reference: Hashable | None = None) -> Divergence:
    """The asymptote of `descend(data, reference=reference)`, parametrisation "scores", logistic link, any stable lr.

    Soudry et al. 2018 (arXiv 1710.10345, Theorem 3): on separable data gradient descent follows w log t + O(1), w the
    L2 max-margin solution; Ji & Telgarsky 2019 (arXiv 1803.07300): where only part is separable, the rest converges in
    its own subspace and w is orthogonal to that. Here the inseparable wins are those inside a strongly connected group,
    so w gives each group one value. At the limit each win that is tight in the problem above keeps a constant share
        multiplier_k = count_k / total * exp(-offset gap_k),
    which fixes the offsets. A pinned `reference` is a different geometry, and can give another direction.
    Raises BadInput for an unknown reference, or if there are home sides.
    """
    if data.home_wins is not None:
        raise BadInput("the direction of divergence is for comparisons without home sides")
    exists = existence(data)
    pinned = None if reference is None else data.index(reference)
    within = maximise_within_groups(data, exists, "logistic")[1]
    if pinned is not None:
        within[exists.groups == exists.groups[pinned]] -= within[pinned]
    slopes, offsets = np.zeros(data.n), within.copy()
    for component in range(exists.components.max() + 1):
        groups = np.unique(exists.groups[exists.components == component])
        if len(groups) == 1:
            continue
        fixed = None if pinned is None else int(exists.groups[pinned])
        slope, shift = _quotient(data, exists.groups, groups, within, fixed)
        for g, w, b in zip(groups, slope, shift, strict=True):
            slopes[exists.groups == g] = w
            offsets[exists.groups == g] += b
    return Divergence(exists, slopes, offsets)


def _quotient(data: Comparisons, group_of: Ints, groups: Ints, within: Array, fixed: int | None) -> tuple[Array, Array]:
    """Slope and shift of each of G groups joined by one-sided comparisons; both 0 for the group `fixed`. [G], [G]."""
    G = len(groups)
    position = {int(g): k for k, g in enumerate(groups)}
    weights: dict[tuple[int, int], float] = {}  # (group that won, group that lost): sum of count/total e^{-gap within}
    for i, j in np.argwhere(data.wins > 0):
        if group_of[i] != group_of[j] and group_of[i] in groups:
            edge = position[int(group_of[i])], position[int(group_of[j])]
            share = data.wins[i, j] / data.total * np.exp(within[j] - within[i])
            weights[edge] = weights.get(edge, 0.0) + float(share)
    edges = np.array(list(weights))
    D = np.zeros((len(edges), G))  # w_winner - w_loser
    D[np.arange(len(edges)), edges[:, 0]] = 1
    D[np.arange(len(edges)), edges[:, 1]] = -1
    sizes = np.array([np.count_nonzero(group_of == g) for g in groups], dtype=np.float64)
    moves = np.ones(G, dtype=bool) if fixed is None else groups != fixed

    # minimise sum_g sizes_g w_g^2 subject to D w >= 1: Lawson & Hanson 1974, chapter 23 (LDP), exact and finite.
    scale = np.where(moves, 1 / np.sqrt(sizes), 0.0)
    system = np.vstack([(D * scale).T, np.ones(len(edges))])
    target = np.append(np.zeros(G), 1.0)
    residual = system @ nnls(system, target)[0] - target
    slope = scale * -residual[:G] / residual[G]

    tight = np.abs(D @ slope - 1) < TIGHT
    push = sizes * slope  # = D_tight^T multipliers, for some multipliers >= 0
    A = D[tight]
    multipliers = _positive_multipliers(A[:, moves], push[moves])
    if multipliers is None or not _joined(edges[tight], G):
        return slope, np.full(G, np.nan)
    c = np.array(list(weights.values()))[tight]

    def balance(b: Array) -> tuple[float, Array, Array]:
        share = c * np.exp(-(A @ b))
        value = float(share.sum() + push[moves] @ b[moves])
        gradient = np.where(moves, push, 0.0) - np.where(moves, A.T @ share, 0.0)
        hessian = np.where(np.outer(moves, moves), (A.T * share) @ A, 0.0)
        return value, gradient, hessian

    held = np.full((G, 1), G**-0.5) if moves.all() else np.eye(G)[:, ~moves]  # what `balance` does not depend on
    start = np.zeros(G)  # exact if the tight wins are independent, when there is but one choice of multipliers
    start[moves] = np.linalg.lstsq(A[:, moves], np.log(c / multipliers))[0]
    shift = newton(balance, start, held)
    if moves.all():  # every update conserves the sum of these scores
        shift = shift - sizes @ shift / sizes.sum()
    return slope, shift


def _positive_multipliers(A: Array, push: Array) -> Array | None:
    """Multipliers > 0, one a tight win, with A^T multipliers = push; None if there are none: then a gap grows by
    log log t besides."""
    m = len(A)
    found = linprog(
        np.append(np.zeros(m), -1.0),  # maximise the least multiplier
        A_eq=np.column_stack([A.T, np.zeros(A.shape[1])]),
        b_eq=push,
        A_ub=np.column_stack([-np.eye(m), np.ones(m)]),
        b_ub=np.zeros(m),
        bounds=[(None, None)] * m + [(None, 1.0)],
    )
    return np.asarray(found.x[:m]) if found.success and -found.fun > TIGHT else None


def _joined(edges: Ints, nodes: int) -> bool:
    graph = csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    return bool(connected_components(graph, directed=False)[0] == 1)
