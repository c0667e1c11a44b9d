"""Losses of the policy's own log-probs: lw, ll summed over the response, |w|, |l| its length. No reference is used."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from src.losses.base import NonNegative, PairLogRatios, Positive, facts


@facts(reference=False)
def sft(pairs: PairLogRatios) -> Tensor:
    """-lw, weighted so that the batch's mean is over its chosen tokens: what every preference loss is compared with."""
    lengths = pairs.lengths[..., 0].to(pairs.logps.dtype)
    return -pairs.logps[..., 0] / lengths.mean(-1, keepdim=True)


@facts(reference=False)
def simpo(pairs: PairLogRatios, *, beta: Positive, gamma: NonNegative) -> Tensor:
    """l(beta (lw/|w| - ll/|l|) - gamma). Meng et al. 2024 (SimPO)."""
    per_token = pairs.logps / pairs.lengths
    return softplus(gamma - beta * (per_token[..., 0] - per_token[..., -1]))


@facts(reference=False)
def cpo(pairs: PairLogRatios, *, beta: Positive, alpha: NonNegative) -> Tensor:
    """l(beta (lw - ll)) + alpha sft. Xu et al. 2024 (CPO). The likelihood is averaged over the batch's tokens."""
    margin = pairs.logps[..., 0] - pairs.logps[..., -1]
    return softplus(-beta * margin) + alpha * sft(pairs)


@facts(reference=False)
def slic_hf(pairs: PairLogRatios, *, delta: Positive, nll_weight: NonNegative) -> Tensor:
    """max(0, delta - lw + ll) - lambda lw. Zhao et al. 2023 (SLiC-HF)."""
    margin = pairs.logps[..., 0] - pairs.logps[..., -1]
    return (delta - margin).clamp(min=0) - nll_weight * pairs.logps[..., 0]


@facts(reference=False)
def orpo(pairs: PairLogRatios, *, nll_weight: NonNegative, odds_weight: NonNegative) -> Tensor:
    """-lw/|w| + lambda l(log odds_w - log odds_l), odds of the per-token probability. Hong et al. 2024 (ORPO)."""
    per_token = pairs.logps / pairs.lengths
    log_odds = per_token - _log_one_minus_exp(per_token)
    return odds_weight * softplus(log_odds[..., -1] - log_odds[..., 0]) - nll_weight * per_token[..., 0]


def _log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0 (Maechler 2012). At x = 0 the odds are infinite; x is kept 1e-12 away from it."""
    x = x.clamp(max=-1e-12)
    near = x > -0.6931
    # Each branch is given an argument it can bear: torch.where differentiates both.
    small = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, small, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
