"""Kullback-Leibler divergences: estimators from samples, exact values, and what their gradients are. All in nats.

The usual names: x ~ q, r = p/q. Here q is the policy and p the reference: x ~ pi, r = ref(x)/pi(x), and all of this
takes the project's log-ratio, log pi - log ref = -log r. So KL(q || p) is KL(pi || ref), the "reverse" divergence that
RLHF penalises; KL(p || q) = KL(ref || pi) is "forward".

                    mean over x ~ pi    as_loss: mean gradient      as_reward: mean gradient
    k1 = -log r     KL(pi || ref)       0                           grad KL(pi || ref)
    k2 = log^2 r/2  (neither)           grad KL(pi || ref)          -
    k3 = r-1-log r  KL(pi || ref)       grad KL(ref || pi)          grad KL(pi || ref) - grad KL(ref || pi)

(The mean of k3, and what is said of its gradients, need ref = 0 wherever pi = 0.) An unbiased
estimate of a divergence is thus no unbiased estimate of its gradient, and the choice decides what is regularised.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Estimator = Callable[[Tensor], Tensor]


def k1(log_ratio: Tensor) -> Tensor:
    """-log r. Unbiased; negative where pi < ref. Schulman 2020, "Approximating KL divergence", k1.

    log_ratio: log pi(x) - log ref(x) of samples x ~ pi, any shape -> the same shape, nats.
    """
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """(log r)^2 / 2. Biased, >= 0; equal to KL to second order in pi - ref. Schulman 2020, k2. Shapes as `k1`."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """r - 1 - log r. Unbiased, >= 0, 0 only at log_ratio = 0. Schulman 2020, k3. Shapes as `k1`.

    Grows like r = exp(-log_ratio): inf where r exceeds the largest float, which it does for log-ratios below -88.7 in
    float32 (-709.8 in float64). The gradient 1 - r is then -inf, never NaN. Accurate to a few ulp, near 0 too, where
    r - 1 and log r cancel and the series is used instead.
    """
    tiny = _exp_remainder(log_ratio.clamp(-_SERIES, _SERIES))
    x = log_ratio.clamp(min=torch.finfo(log_ratio.dtype).min)  # -inf too means r = inf, not inf - inf
    return torch.where(log_ratio.abs() < _SERIES, tiny, torch.expm1(-x) + x)


ESTIMATORS: dict[str, Estimator] = {"k1": k1, "k2": k2, "k3": k3}

_SERIES = 0.25
_TERMS = 12  # .25^12 / 14! < 1e-18 of the first term


def _exp_remainder(x: Tensor) -> Tensor:
    """e^{-x} - 1 + x = x^2 (1/2! - x/3! + x^2/4! - ..), for |x| <= _SERIES."""
    total = torch.full_like(x, 1 / math.factorial(_TERMS + 1))
    for n in range(_TERMS, 1, -1):
        total = 1 / math.factorial(n) - x * total
    return x * x * total


def as_loss(estimator: Estimator, logps: Tensor, ref_logps: Tensor) -> Tensor:
    """The estimator added to the loss: its gradient flows through the log-ratio of the samples, taken as fixed.

    On average over x ~ pi that is 0 for k1 (which then regularises nothing), grad KL(pi || ref) for k2 and
    grad KL(ref || pi) for k3, the form of DeepSeekMath (Shao et al. 2024, arXiv 2402.03300, Eq. 3).

    logps, ref_logps: log pi(x), log ref(x) of the samples, same shape -> the value, and surrogate, of that shape.
    Raises ValueError if the shapes differ.
    """
    return estimator(_log_ratio(logps, ref_logps))


def as_reward(estimator: Estimator, logps: Tensor, ref_logps: Tensor) -> Tensor:
    """The estimator subtracted from the reward: k(x) log pi(x) with k(x) held fixed, the score-function surrogate
    (Williams 1992; Ouyang et al. 2022, arXiv 2203.02155, Eq. 2, has k1 there). Its value means nothing.

    On average over x ~ pi its gradient is grad KL(pi || ref) for k1, grad KL(pi || ref) - grad KL(ref || pi) for k3.
    as_loss + as_reward of one estimator has the gradient of its mean, which for k1 and k3 is KL(pi || ref).

    Shapes and errors as `as_loss`. To be minimised, times the same coefficient: the sign is that of a penalty.
    """
    return estimator(_log_ratio(logps, ref_logps)).detach() * logps


def grpo_kl(logps: Tensor, ref_logps: Tensor, mask: Tensor, *, estimator: Estimator = k3) -> Tensor:
    """A response's mean over its tokens of k3 per token. DeepSeekMath (arXiv 2402.03300): Eq. 4, averaged as in Eq. 3.

    Given the tokens before it, each term is unbiased for that position's KL; their mean is not the divergence of whole
    responses, whose estimate would be the sum, and a long response weighs as much as a short one.

    logps, ref_logps: token log-probs, [..., T]; mask: [..., T], true (or 1) on response tokens -> [...], nats a token.
    What stands on masked tokens (NaN or inf too) touches neither value nor gradient.
    Raises ValueError if the shapes differ or a response has no tokens.
    """
    kept = mask.bool()
    if not kept.shape == logps.shape == ref_logps.shape:
        shapes = [tuple(x.shape) for x in (logps, ref_logps, mask)]
        raise ValueError(f"logps, ref_logps and mask differ in shape: {shapes}")
    lengths = kept.sum(-1)
    if not bool((lengths > 0).all()):
        raise ValueError("a response has no tokens: its mean over tokens is undefined")
    log_ratio = _log_ratio(logps.masked_fill(~kept, 0.0), ref_logps.masked_fill(~kept, 0.0))
    return estimator(log_ratio).masked_fill(~kept, 0.0).sum(-1) / lengths


def reverse_kl(log_pi: Tensor, log_ref: Tensor) -> Tensor:
    """KL(pi || ref) = sum_x pi log(pi/ref), exactly. Kullback & Leibler 1951.

    log_pi, log_ref: normalised log-probs over V outcomes (actions, tokens), [..., V], leading dimensions broadcast
    -> [...], nats. An outcome of log-prob -inf under pi counts 0 and passes no gradient; one that only ref excludes
    makes it inf.
    Raises ValueError if V differs.
    """
    _same_outcomes(log_pi, log_ref)
    support = log_pi > -math.inf
    q = torch.where(support, log_pi, 0.0)
    return (q.exp() * (q - torch.where(support, log_ref, 0.0))).sum(-1)


def forward_kl(log_pi: Tensor, log_ref: Tensor) -> Tensor:
    """KL(ref || pi) = sum_x ref log(ref/pi), exactly: `reverse_kl` with the two exchanged. Shapes as there."""
    return reverse_kl(log_ref, log_pi)


def jensen_shannon(log_pi: Tensor, log_ref: Tensor) -> Tensor:
    """KL(pi || m)/2 + KL(ref || m)/2, m = (pi + ref)/2: symmetric, within [0, log 2], and log 2 where pi and ref share
    no outcome. Lin 1991, IEEE Trans. Inf. Theory 37, Eq. 4.1 (nats here). Shapes, -inf and errors as `reverse_kl`, but
    always finite.
    """
    _same_outcomes(log_pi, log_ref)
    nowhere = (log_pi == -math.inf) & (log_ref == -math.inf)  # logaddexp has no gradient there
    log_m = torch.logaddexp(torch.where(nowhere, 0.0, log_pi), torch.where(nowhere, 0.0, log_ref)) - math.log(2)
    return (reverse_kl(log_pi, log_m) + reverse_kl(log_ref, log_m)) / 2


def _log_ratio(logps: Tensor, ref_logps: Tensor) -> Tensor:
    if logps.shape != ref_logps.shape:
        raise ValueError(
            f"log-probs of the same samples differ in shape: {tuple(logps.shape)}, {tuple(ref_logps.shape)}"
        )
    return logps - ref_logps


def _same_outcomes(log_pi: Tensor, log_ref: Tensor) -> None:
    if log_pi.shape[-1] != log_ref.shape[-1]:
        raise ValueError(f"distributions over {log_pi.shape[-1]} and {log_ref.shape[-1]} outcomes cannot be compared")
