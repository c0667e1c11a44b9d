"""Losses of K ranked responses, best first; s_i = beta log-ratio of response i.

Liu et al. 2024 (LiPO), arXiv 2402.01878.

For K = 2 each is a known pairwise loss: pair_hinge is hinge, lambda_loss is DPO up to a weight, the others are DPO.
"""

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from src.losses.base import PairLogRatios, Positive, facts
from src.losses.pairwise import LOG2, infinite


def _pair_differences(pairs: PairLogRatios, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s_i - s_j for all i ranked above j, [R, N, K (K - 1)/2], with i and j."""
    s = beta[..., None] * pairs.log_ratios
    i, j = torch.triu_indices(s.shape[-1], s.shape[-1], 1, device=s.device)
    return s[..., i] - s[..., j], i, j


@facts(start=lambda beta: LOG2, optimum=infinite, lists=True)
def pair_logistic(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """Mean of l(s_i - s_j) over the pairs of the list."""
    return softplus(-_pair_differences(pairs, beta)[0]).mean(-1)


@facts(start=lambda beta: 1.0, optimum=lambda beta: 1 / beta, lists=True)
def pair_hinge(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """Mean of max(0, 1 - (s_i - s_j)) over the pairs of the list."""
    return relu(1 - _pair_differences(pairs, beta)[0]).mean(-1)


@facts(optimum=infinite, lists=True)
def list_mle(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """-sum_t [s_t - logsumexp_{j >= t} s_j]: the Plackett-Luce likelihood of the ranking. Xia et al. 2008.

    Written as sum_t log(1 + e^(logsumexp_{j > t} s_j - s_t)): the paper's difference rounds to 0 once s_t leads by 17.
    """
    s = beta[..., None] * pairs.log_ratios
    later = [torch.logsumexp(s[..., t + 1 :], -1) for t in range(s.shape[-1] - 1)]
    return softplus(torch.stack(later, -1) - s[..., :-1]).sum(-1)


@facts(optimum=infinite, lists=True)
def list_softmax(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """Cross-entropy of softmax(s) against the ranks' gains, here the best response: -log softmax(s)_1.

    Written as log(1 + e^(logsumexp_{j > 1} s_j - s_1)), as in `list_mle`.
    """
    s = beta[..., None] * pairs.log_ratios
    return softplus(torch.logsumexp(s[..., 1:], -1) - s[..., 0])


@facts(optimum=infinite, lists=True)
def lambda_loss(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """sum_{i above j} |G_i - G_j| |1/D(r_i) - 1/D(r_j)| l(s_i - s_j), G = 2^label - 1, D = log(1 + rank).

    Labels are evenly spaced from 1 (best) to 0 (worst), the ranks r those of the current scores, not differentiated;
    equal scores rank as the data do, or nothing would move from the start.
    The weight is what swapping i and j would cost in DCG (LambdaRank).
    """
    difference, i, j = _pair_differences(pairs, beta)
    size = pairs.log_ratios.shape[-1]
    gain = torch.linspace(1, 0, size, device=difference.device, dtype=difference.dtype).exp2() - 1
    rank = pairs.log_ratios.detach().argsort(descending=True, stable=True).argsort(-1) + 1
    discount = 1 / torch.log1p(rank.to(difference.dtype))
    weight = (gain[i] - gain[j]).abs() * (discount[..., i] - discount[..., j]).abs()
    return (weight * softplus(-difference)).sum(-1)
