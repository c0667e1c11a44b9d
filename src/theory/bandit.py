"""A softmax over V actions, where everything is known: flows, optima, the reward-KL frontier. Float64 in and out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.integrate import solve_ivp

from src.config import Choice
from src.errors import BadInput
from src.theory.weights import loss_values

Array = npt.NDArray[np.float64]


def pair_probabilities(h: npt.ArrayLike, p_w: float, p_l: float) -> tuple[Array, Array]:
    """(pi_w, pi_l) at margin h [N] of a margin loss: theta_w rises by h/2, theta_l falls by h/2.

    Gradient steps of any elementwise optimiser keep that symmetry; log-space, so no overflow at large h.
    """
    half = np.asarray(h, dtype=np.float64) / 2
    with np.errstate(divide="ignore"):
        w, low, rest = np.log(p_w) + half, np.log(p_l) - half, np.log(max(1 - p_w - p_l, 0.0)) + 0 * half
    Z = np.logaddexp(np.logaddexp(w, low), rest)
    return np.exp(w - Z), np.exp(low - Z)


def descent_flow(loss: Choice, ref: Sequence[float], t: npt.ArrayLike, *, eta: float, rtol: float = 1e-8) -> Array:
    """log pi(t) [T, V] of d theta/dt = -eta grad L(theta) from the reference, for any loss, on the one pair (0, 1).

    ref: [V] probabilities; t: [T] increasing. The gradient is autograd's of the loss itself through the softmax.
    Gradient descent is its Euler steps, O(eta) away. BDF: LSODA creeps where a kink ends the motion (hinge, chi-PO).
    """
    times = np.asarray(t, dtype=np.float64)
    ref_log = torch.tensor(ref, dtype=torch.float64).log()

    def velocity(_: float, theta: Array) -> Array:
        leaf = torch.tensor(theta, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss_values(loss, leaf.log_softmax(-1)[None], ref_log).sum(), leaf)
        return np.asarray(-eta * gradient.numpy())

    solved = solve_ivp(
        velocity, (0.0, float(times[-1])), ref_log.numpy(), method="BDF", t_eval=times, rtol=rtol, atol=1e-10
    )
    if not solved.success:
        raise ArithmeticError(f"gradient flow of {loss.name}: {solved.message}")
    return torch.tensor(solved.y.T).log_softmax(-1).numpy()


Law = Literal["settles", "slower than log t", "log t", "linear in t"]
SETTLED = 0.01  # dh/dlog t [nats]; of the losses here one that settles has < 1e-4 of it after 1e8 updates, others > .05


@dataclass(frozen=True)
class Growth:
    """Where descent takes the margin. h: nats, after 1e8 updates; slope: dh/dlog t over the last decade [nats]."""

    law: Law
    h: float
    slope: float
    pi: Array  # [V] after 1e8 updates

    @property
    def collapses(self) -> bool:
        """pi(rejected) tends to 0, being at most e^{-h} ref(rejected)/ref(chosen): h still grows after 1e8 updates."""
        return self.slope > SETTLED


def growth_law(loss: Choice, ref: Sequence[float], *, eta: float) -> Growth:
    """The law of h under gradient descent on one certain pair, from eight decades of `descent_flow`.

    Under Adam or RMSprop read t for log t: a gradient that falls like e^{-r h} sustains a fall of `adam_kappa` an
    update, so what grew like log t under SGD grows linearly, and what grew linearly grows by lr a parameter and update.
    """
    t = np.array([1e6, 1e7, 1e8])
    log_pi = descent_flow(loss, ref, t, eta=eta, rtol=1e-6)
    h = log_pi[:, 0] - log_pi[:, 1] - math.log(ref[0] / ref[1])
    earlier, slope = np.diff(h) / np.diff(np.log(t))
    law: Law
    if abs(slope) < SETTLED:
        law = "settles"
    elif slope > 5 * earlier:  # ten times, if h is proportional to t
        law = "linear in t"
    else:
        law = "slower than log t" if slope < 0.97 * earlier else "log t"
    return Growth(law, float(h[-1]), float(slope), np.exp(log_pi[-1]))


def ipo_optimum(wins: npt.ArrayLike, theta_ref: npt.ArrayLike, tau: float) -> Array:
    """IPO's optimal logits [V] on any comparison graph: theta_ref + pinv(L) d / (2 tau).

    wins[i, j]: how often i was preferred to j, [V, V], fractions allowed. L: Laplacian of wins + wins^T; d: wins minus
    losses of each action. Empirical IPO is the least-squares problem theta_i - theta_j = theta_ref gap + 1/(2 tau) over
    all wins. In each connected component the sum of logits is that of theta_ref, which gradient steps conserve; an
    action in no comparison keeps its logit.
    """
    counts = np.asarray(wins, dtype=np.float64)
    start = np.asarray(theta_ref, dtype=np.float64)
    if counts.shape != (len(start), len(start)) or (counts < 0).any() or counts.diagonal().any():
        raise BadInput(f"wins must be a {len(start)} x {len(start)} matrix of counts >= 0 with zero diagonal")
    edges = counts + counts.T
    laplacian = np.diag(edges.sum(1)) - edges
    scores: Array = counts.sum(1) - counts.sum(0)
    # The pseudo-inverse of a block-diagonal matrix is block-diagonal, and every block has the kernel (1, .., 1).
    return np.asarray(start + np.linalg.pinv(laplacian, hermitian=True) @ scores / (2 * tau))


def wins_matrix(pairs: Sequence[tuple[int, int]], actions: int) -> Array:
    """Count (preferred, other) pairs of actions, [V, V]."""
    counts = np.zeros((actions, actions))
    np.add.at(counts, tuple(np.array(pairs).T), 1)
    return counts


def softmax(theta: npt.ArrayLike) -> Array:
    """Probabilities along the last axis."""
    logits = np.asarray(theta, dtype=np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


@dataclass(frozen=True)
class Frontier:
    """pi: [N, V]; reward: R = E_pi r, [N]; kl: KL(pi, ref), [N] nats; objective: J = R - R_ref - beta KL, [N]."""

    betas: Array
    pi: Array
    reward: Array
    kl: Array
    objective: Array


def kl_reward_frontier(ref: npt.ArrayLike, reward: npt.ArrayLike, betas: npt.ArrayLike) -> Frontier:
    """The most reward for its KL: pi_beta = ref exp(r/beta)/Z, at each beta (Rafailov et al. 2023, Eq. 4).

    ref, reward: [V]; betas: [N]. Concave, with dR/dKL = beta. It is also the optimum of DPO when preferences are
    Bradley-Terry in `reward`, whatever is compared with what, as long as the comparisons connect all actions.
    """
    p, r, scale = (np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (ref, reward, betas))
    with np.errstate(divide="ignore"):
        pi = softmax(np.log(p) + r / scale[:, None])
    R, KL = pi @ r, kl_divergence(pi, p)
    return Frontier(scale, pi, R, KL, objective(pi, p, r, scale))


def kl_divergence(pi: npt.ArrayLike, ref: npt.ArrayLike) -> Array:
    """KL(pi, ref) [nats] along the last axis."""
    q, p = np.asarray(pi, dtype=np.float64), np.asarray(ref, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(q > 0, q * (np.log(q) - np.log(p)), 0.0).sum(-1))


def objective(pi: npt.ArrayLike, ref: npt.ArrayLike, reward: npt.ArrayLike, beta: npt.ArrayLike) -> Array:
    """J = R - R_ref - beta KL(pi, ref): what RLHF maximises, 0 at the reference. Negative: worse than not training."""
    r = np.asarray(reward, dtype=np.float64)
    gained = np.asarray(pi, dtype=np.float64) @ r - np.asarray(ref, dtype=np.float64) @ r
    return np.asarray(gained - np.asarray(beta, dtype=np.float64) * kl_divergence(pi, ref))
