"""Pairwise losses. a, b: chosen and rejected log-ratio; h = a - b; all in nats, summed over the response.

Each function is the equation of its paper; the YAML of the same name in conf/loss holds paper and defaults.
"""

import math

from torch import Tensor
from torch.nn.functional import softplus

from src.losses.base import PairLogRatios, Positive, starts_at


@starts_at(lambda beta: math.log(2))
def dpo(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """-log sigma(beta h). Rafailov et al. 2023, Eq. 7."""
    return softplus(-beta * pairs.h)


@starts_at(lambda beta: 1 / (4 * beta**2))
def ipo(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """(h - 1/(2 beta))^2. Azar et al. 2023, Eq. 17, tau = beta."""
    return (pairs.h - 1 / (2 * beta)) ** 2
