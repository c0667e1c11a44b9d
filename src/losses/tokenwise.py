"""Losses that look inside a response: at each token's log-prob, or at the whole next-token distribution.

`tokens` costs nothing: the token log-probs exist anyway. `vocabulary` keeps T x V log-probs a response and, for TDPO,
as many of the reference for every pair of the data: fine for a toy vocabulary, 4 V bytes a token for a language model.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from src.losses.base import NonNegative, PairLogRatios, Positive, facts
from src.losses.pairwise import LOG2, infinite


@facts(start=lambda beta, alpha: LOG2, optimum=infinite, tokens=True)
def ld_dpo(pairs: PairLogRatios, *, beta: Positive, alpha: NonNegative) -> Tensor:
    """DPO whose log-probs count tokens beyond the shorter response's length with weight alpha. Liu et al. 2024."""
    assert pairs.mask is not None and pairs.token_logps is not None and pairs.ref_token_logps is not None
    shared = pairs.lengths.amin(-1)[..., None, None]
    position = torch.arange(pairs.mask.shape[-1], device=pairs.mask.device)
    weight = torch.where(position < shared, torch.ones_like(alpha)[..., None, None], alpha[..., None, None])
    ratio = ((pairs.token_logps - pairs.ref_token_logps) * weight * pairs.mask).sum(-1)
    return softplus(-beta * (ratio[..., 0] - ratio[..., -1]))


@facts(optimum=infinite, tokens=True, vocabulary=True)
def wpo(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """w(chosen) w(rejected) l(u), w = exp(mean_t [log pi_t - log sum_v pi_v^2]), not differentiated.

    Zhou et al. 2024 (WPO), Eq. 2 with sampled alignment: pairs the policy would hardly produce weigh little.
    """
    assert pairs.mask is not None and pairs.token_logps is not None and pairs.log_pi is not None
    aligned = pairs.token_logps.detach() - torch.logsumexp(2 * pairs.log_pi.detach(), -1)
    weight = ((aligned * pairs.mask).sum(-1) / pairs.lengths).sum(-1).exp()
    return weight * softplus(-beta * pairs.h)


@facts(start=lambda beta: LOG2, tokens=True, vocabulary=True)
def tdpo1(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """l(beta (h - (SeqKL_l - SeqKL_w))), SeqKL(y) = sum_t KL(ref, pi) along y. Zeng et al. 2024 (TDPO), version 1."""
    sequential = _sequential_kl(pairs)
    return softplus(-beta * (pairs.h - (sequential[..., -1] - sequential[..., 0])))


@facts(start=lambda beta, alpha: LOG2, tokens=True, vocabulary=True)
def tdpo2(pairs: PairLogRatios, *, beta: Positive, alpha: NonNegative) -> Tensor:
    """l(beta (h - alpha (SeqKL_l - stopgrad SeqKL_w))): the chosen response's own KL is not pushed up. Version 2."""
    sequential = _sequential_kl(pairs)
    return softplus(-beta * (pairs.h - alpha * (sequential[..., -1] - sequential[..., 0].detach())))


def _sequential_kl(pairs: PairLogRatios) -> Tensor:
    """Forward KL(ref, pi) of the next-token distributions, summed along each response, [R, N, K], in nats."""
    assert pairs.mask is not None and pairs.log_pi is not None and pairs.ref_log_pi is not None
    per_token = (pairs.ref_log_pi.exp() * (pairs.ref_log_pi - pairs.log_pi)).sum(-1)
    return (per_token * pairs.mask).sum(-1)
