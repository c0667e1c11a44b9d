"""Losses that look at chosen and rejected separately: a, b are their log-ratios, A = beta a, B = beta b.

sigma is `base.sigmoid` and t = pi/ref goes through `base.exp`: torch's own lose the slope on one side, or overflow.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, softplus

from src.losses.base import NonNegative, PairLogRatios, Positive, Real, bounded, exp, expm1, facts, sigmoid
from src.losses.pairwise import LOG2, infinite


@facts(start=lambda beta: 2 * LOG2, optimum=infinite)
def nca(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """l(A) + l(-A)/2 + l(-B)/2. Chen et al. 2024 (NCA), for pairs. A stops at log 2, B falls without end."""
    reward = beta * pairs.a
    return softplus(-reward) + 0.5 * softplus(reward) + 0.5 * softplus(beta * pairs.b)


@facts(
    start=lambda beta, lambda_chosen, lambda_rejected: 0.5 * (lambda_chosen + lambda_rejected),
    optimum=infinite,
)
def kto(pairs: PairLogRatios, *, beta: Positive, lambda_chosen: NonNegative, lambda_rejected: NonNegative) -> Tensor:
    """lambda_w (1 - sigma(beta (a - z))) + lambda_l (1 - sigma(beta (z - b))). Ethayarajh et al. 2024, on pairs.

    z is the paper's KL(policy, reference), clamped at 0 and not differentiated, estimated by the mean log-ratio of the
    batch's own responses; the paper estimates it from prompts mismatched with responses, which a batch of pairs
    does not have.
    """
    z = pairs.log_ratios.detach().mean((-2, -1)).clamp(min=0)[:, None]
    return lambda_chosen * sigmoid(beta * (z - pairs.a)) + lambda_rejected * sigmoid(beta * (pairs.b - z))


@facts(start=lambda beta, delta: math.log1p(math.exp(delta)) + math.log1p(math.exp(-delta)), optimum=infinite)
def bco(pairs: PairLogRatios, *, beta: Positive, delta: Real) -> Tensor:
    """l(A - delta) + l(-(B - delta)). Jung et al. 2024 (BCO). `delta` is the paper's reward shift, held fixed."""
    return softplus(delta - beta * pairs.a) + softplus(beta * pairs.b - delta)


@facts(start=lambda beta: 1.0, optimum=infinite)
def apo_zero(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """1 - sigma(A) + sigma(B): chosen up, rejected down. D'Oosterlinck et al. 2024 (APO), Eq. 7."""
    return sigmoid(-beta * pairs.a) + sigmoid(beta * pairs.b)


@facts(start=lambda beta: 1.0, optimum=infinite)
def apo_down(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """sigma(A) + 1 - sigma(A - B): both down, rejected more. D'Oosterlinck et al. 2024 (APO), Eq. 8."""
    return sigmoid(beta * pairs.a) + sigmoid(-beta * pairs.h)


@facts(start=lambda beta: 1 / (2 * beta**2), optimum=lambda beta: 1 / beta)
def sppo_hard(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2. Wu et al. 2024 (SPPO), Eq. 4.7 with certain labels."""
    goal = 1 / (2 * beta)
    return (pairs.a - goal) ** 2 + (pairs.b + goal) ** 2


def _cal_dpo_optimum(beta: float) -> float:
    """a = 1/(2 beta) + sigma(-2 a), b = -a: solved by iterating, a contraction of factor at most 1/2."""
    a = 1 / (2 * beta)
    for _ in range(100):
        a = 1 / (2 * beta) + 1 / (1 + math.exp(min(2 * a, 700)))
    return 2 * a


@facts(start=lambda beta: LOG2 + 1 / (4 * beta**2), optimum=_cal_dpo_optimum)
def cal_dpo(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """l(h) + [(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2] / 2: rewards calibrated to a scale. Xiao et al. 2024."""
    goal = 1 / (2 * beta)
    return softplus(-pairs.h) + 0.5 * ((pairs.a - goal) ** 2 + (pairs.b + goal) ** 2)


@facts(start=lambda beta, penalty: LOG2, optimum=infinite)
def dpop(pairs: PairLogRatios, *, beta: Positive, penalty: NonNegative) -> Tensor:
    """l(beta (h - lambda max(0, -a))): DPO-Positive, chosen may not fall below the reference. Pal et al. 2024.

    relu, whose slope at 0 is 0, and not clamp, whose slope there is 1: a copy of the reference starts at a = 0, and a
    first step that counts the penalty would push chosen 1 + lambda times as hard as any later one.
    """
    return softplus(-beta * (pairs.h - penalty * relu(-pairs.a)))


@facts(start=lambda beta, alpha: LOG2, optimum=infinite)
def f_dpo_alpha(pairs: PairLogRatios, *, beta: Positive, alpha: NonNegative) -> Tensor:
    """DPO for the alpha-divergence, f'(t) = (1 - t^-alpha)/alpha, t = pi/ref. Wang et al. 2023 (f-DPO).

    alpha = 0 is the reverse KL, ordinary DPO; alpha = 1 the forward KL. TRL's coefficient is 1 - alpha.
    Through expm1, for 1 - t^-alpha loses its digits when alpha is small.
    """
    safe = torch.where(alpha == 0, torch.ones_like(alpha), alpha)

    def t_to_minus_alpha_less_one(log_ratio: Tensor) -> Tensor:
        return expm1(bounded(-safe * log_ratio, beta / safe.clamp(max=1)))

    curved = (t_to_minus_alpha_less_one(pairs.b) - t_to_minus_alpha_less_one(pairs.a)) * (beta / safe)
    return softplus(-torch.where(alpha == 0, beta * pairs.h, curved))


@facts(start=lambda beta, divergence: LOG2, optimum=infinite)
def f_dpo(pairs: PairLogRatios, *, beta: Positive, divergence: Literal["reverse_kl", "forward_kl", "js"]) -> Tensor:
    """l(beta (f'(t_w) - f'(t_l))), t = pi/ref. Wang et al. 2023 (f-DPO).

    f' is log t (reverse KL: ordinary DPO), 1 - 1/t (forward KL), log(2 t / (1 + t)) (Jensen-Shannon).
    """
    if divergence == "reverse_kl":
        difference = pairs.h
    elif divergence == "forward_kl":
        difference = exp(-pairs.b, beta) - exp(-pairs.a, beta)
    else:
        difference = logsigmoid(pairs.a) - logsigmoid(pairs.b)
    return softplus(-beta * difference)


@facts(start=lambda beta, r_max: LOG2)
def chi_po(pairs: PairLogRatios, *, beta: Positive, r_max: Positive) -> Tensor:
    """l(clip(beta (phi(t_w) - phi(t_l)), 2 R_max)), phi(t) = t + log t, t = pi/ref. Huang et al. 2024 (chi-PO)."""
    score = beta * (exp(pairs.a, beta) - exp(pairs.b, beta) + pairs.h)
    return softplus(-torch.minimum(torch.maximum(score, -2 * r_max), 2 * r_max))


@facts(start=None, optimum=infinite)
def rpo(pairs: PairLogRatios, *, beta: Positive, alpha: NonNegative) -> Tensor:
    """l(u) - alpha log pi(w) / |w|: DPO plus a likelihood term. Pang et al. 2024 (iterative RPO)."""
    return softplus(-beta * pairs.h) - alpha * pairs.logps[..., 0] / pairs.lengths[..., 0]
