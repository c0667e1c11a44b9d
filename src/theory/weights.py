"""Gradients and optima of any loss of the registry, for one pair of one-token responses.

Nothing here knows a loss by name but `SLOPES`, the closed forms that autograd is checked with: a new loss needs no
edit.

The pair lives in a bandit of V actions with reference `ref`: action 0 is chosen, 1 is rejected, the others share what
is left of the policy in the reference's proportions. Only losses that look at pi itself (reference-free ones, and those
that read whole distributions) notice `ref`. Shapes: N points, V actions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq, root
from scipy.special import expit, log_ndtr
from torch import Tensor

from src.config import Choice
from src.losses.base import PairLogRatios
from src.losses.stacked import StackLoss

Array = npt.NDArray[np.float64]

UNIFORM = (0.25, 0.25, 0.25, 0.25)
SAME = 1e-10  # two gradients that agree to this are equal: autograd of different expressions rounds differently


def loss_values(loss: Choice, log_pi_NV: Tensor, ref_log_pi_V: Tensor, log_ratios_N2: Tensor | None = None) -> Tensor:
    """The loss of policies `log_pi` on the pair (0, 1), [N]. Each point is a run of its own, with a batch of one.

    log_ratios_N2: a and b, where they are the variables; by default those of the distributions.
    """
    N, V = log_pi_NV.shape
    ref_N2 = ref_log_pi_V[:2].expand(N, 2)
    ratios = log_pi_NV[:, :2] - ref_N2 if log_ratios_N2 is None else log_ratios_N2
    ref_logps, logps = ref_N2[:, None], (ref_N2 + ratios)[:, None]  # [R = N, 1 pair, K = 2]
    ones = torch.ones(N, 1, 2, dtype=torch.int64)
    pairs = PairLogRatios(
        logps=logps,
        ref_logps=ref_logps,
        lengths=ones,
        token_logps=logps[..., None],
        ref_token_logps=ref_logps[..., None],
        mask=ones[..., None].bool(),
        log_pi=log_pi_NV[:, None, None, None].expand(N, 1, 2, 1, V),
        ref_log_pi=ref_log_pi_V.expand(N, 1, 2, 1, V),
    )
    return StackLoss([loss] * N, torch.device("cpu"), torch.float64)(pairs)[:, 0]


def side_weights(
    loss: Choice, a: npt.ArrayLike, b: npt.ArrayLike, ref: Sequence[float] = UNIFORM
) -> tuple[Array, Array]:
    """(dL/da, dL/db) [1/nat] by autograd at log-ratios a, b: [N], [N] -> [N], [N].

    The gradient that training follows: what a loss detaches (KTO's z, WPO's weights) is held fixed. NaN for a loss of
    the whole distribution where ref_0 e^a + ref_1 e^b > 1 leaves the other actions nothing.
    """
    ab = torch.tensor(np.stack(np.broadcast_arrays(a, b), -1), dtype=torch.float64).reshape(-1, 2).requires_grad_()
    ref_log = torch.tensor(ref, dtype=torch.float64).log()
    others = ref_log[2:].log_softmax(-1) if len(ref) > 2 else ref_log[2:]
    rest = torch.log1p(-(ref_log[:2] + ab).exp().sum(-1, keepdim=True))
    log_pi = torch.cat([ref_log[:2] + ab, rest + others], -1)
    (gradient,) = torch.autograd.grad(loss_values(loss, log_pi, ref_log, ab).sum(), ab)
    values = gradient.numpy()
    return values[:, 0].copy(), values[:, 1].copy()


def slope(loss: Choice, h: npt.ArrayLike, ref: Sequence[float] = UNIFORM) -> Array:
    """L1 = dL/da [1/nat] at margin h [N], on the path where neither side is above the reference.

    For a loss of the margin this is dL/dh wherever on the path; `is_margin_loss` says which those are.
    """
    h_ = np.atleast_1d(np.asarray(h, dtype=np.float64))
    return side_weights(loss, np.minimum(h_, 0.0), -np.maximum(h_, 0.0), ref)[0]


def is_margin_loss(loss: Choice, ref: Sequence[float] = UNIFORM) -> bool:
    """Is L, for one pair, a function of h = a - b alone? By probing: equal and opposite sides, whatever a + b."""
    a = np.array([-0.1, -0.3, -2.0, -1.0, -0.2])
    b = np.array([-0.2, -1.0, -0.1, -5.0, -9.0])
    chosen, rejected = side_weights(loss, a, b, ref)
    shifted = side_weights(loss, a - 0.7, b - 0.7, ref)[0]
    opposite = np.allclose(chosen, -rejected, rtol=SAME, atol=SAME)
    return bool(opposite and np.allclose(chosen, shifted, rtol=SAME, atol=SAME))


@dataclass(frozen=True)
class Stationary:
    """A margin at which the slope changes sign, or stops being nonzero. A flat stretch counts by its near end."""

    h: float
    minimum: bool


def stationary_points(loss: Choice, grid: npt.ArrayLike, ref: Sequence[float] = UNIFORM) -> list[Stationary]:
    """Where descent of a margin loss can stop, by bisection between neighbours of the increasing `grid` [nats].

    Found to 1e-12 if the grid separates them. Beyond u = 700 an exponential tail underflows and looks flat.
    """
    points = np.asarray(grid, dtype=np.float64)
    signs = np.sign(slope(loss, points, ref))
    found = []
    for k in np.flatnonzero(signs[:-1] != signs[1:]):
        left = signs[k]
        if left == 0:
            continue  # the far end of a flat stretch
        at = brentq(lambda h, s=left: s if np.sign(slope(loss, h, ref)[0]) == s else -s, points[k], points[k + 1])
        found.append(Stationary(float(at), minimum=bool(left < 0)))
    return found


def descent_target(loss: Choice, reach: float, ref: Sequence[float] = UNIFORM) -> float:
    """The margin [nats] where descent from the reference stops with a and b free, by root finding; inf if it goes on.

    A margin loss is followed from h = 0 down its slope; of any other the gradient in (a, b) is solved for zero.
    reach: how far to look [nats]; an optimum beyond it is taken to be infinite.
    """
    if is_margin_loss(loss, ref):
        way = -np.sign(float(slope(loss, 0.0, ref)[0]))
        if way == 0:
            return 0.0
        stops = [p.h for p in stationary_points(loss, np.linspace(-reach, reach, 2001), ref) if p.minimum]
        ahead = [h for h in stops if way * h >= 0]
        return min(ahead, key=abs) if ahead else float(way * math.inf)
    solved = root(
        lambda ab: np.concatenate(side_weights(loss, ab[:1], ab[1:], ref)),
        np.zeros(2),
        tol=1e-13,
        options={"maxfev": 100},
    )
    a, b = solved.x
    # Not `solved.success`: it is false where the last digits cannot be improved any more.
    found = np.abs(solved.fun).max() < 1e-9 and max(abs(a), abs(b)) < reach
    return float(a - b) if found else math.inf


def _discopop(h: Array, *, beta: float, tau: float) -> Array:
    u = beta * h
    m = expit(u / tau)
    change = m * expit(-u / tau) / tau
    dl_du = change * (np.exp(-u) - np.logaddexp(0, -u)) - (1 - m) * expit(-u) - m * np.exp(-u)
    return np.asarray(beta * dl_du)


def _dpo(h: Array, *, beta: float, **_: float) -> Array:
    return np.asarray(-beta * expit(-beta * h))


def _probit(h: Array, *, beta: float) -> Array:
    u = beta * h
    return np.asarray(-beta * np.exp(-u * u / 2 - math.log(2 * math.pi) / 2 - log_ndtr(u)))


# L1(h) in closed form, one pair, one token a response. [N] nats -> [N] 1/nat. Each equals autograd to 1e-12 (tested).
SLOPES: dict[str, Callable[..., Array]] = {
    "dpo": _dpo,
    "r_dpo": _dpo,
    "sigmoid_norm": _dpo,
    "ld_dpo": _dpo,
    "list_mle": _dpo,
    "list_softmax": _dpo,
    "pair_logistic": _dpo,
    "cdpo": lambda h, beta, epsilon: -beta * (expit(-beta * h) - epsilon),
    "aot": lambda h, beta, epsilon: -beta * (expit(-beta * h) - epsilon),
    "aot_unpaired": lambda h, beta, epsilon: -beta * (expit(-beta * h) - epsilon),
    "robust": lambda h, beta, epsilon: -beta * (expit(-beta * h) + epsilon / (1 - 2 * epsilon)),
    "ipo": lambda h, beta: 2 * (h - 1 / (2 * beta)),
    "ipo_avg": lambda h, beta: 2 * (h - 1 / (2 * beta)),
    "hinge": lambda h, beta: -beta * (beta * h < 1),
    "pair_hinge": lambda h, beta: -beta * (beta * h < 1),
    "exp": lambda h, beta: -beta * np.exp(-beta * h),
    "probit": _probit,
    "distill": lambda h, beta, score_gap: -2 * beta * (score_gap - beta * h),
    "exo": lambda h, beta, epsilon: (
        beta * expit(beta * h) * expit(-beta * h) * (beta * h - math.log((1 - epsilon) / epsilon))
    ),
    "discopop": _discopop,
}
