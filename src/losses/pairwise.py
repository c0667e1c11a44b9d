"""Losses of the margin h = a - b, u = beta h; a, b: chosen and rejected log-ratio in nats, summed over the response.

Each function is the equation of its paper; the YAML of the same name in conf/loss holds the paper and the defaults.
l(x) = -log sigma(x) = softplus(-x) throughout: softplus keeps its relative precision where log(sigmoid) rounds to 0.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu, softplus

from src.losses.base import FlipRate, MaybeFlipRate, NonNegative, PairLogRatios, Positive, exp, facts, sigmoid

LOG2 = math.log(2)


def infinite(**_: float) -> float:
    """The optimum of a loss for which a larger margin is always better."""
    return math.inf


@facts(start=lambda beta: LOG2, optimum=infinite)
def dpo(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """l(u). Rafailov et al. 2023, Eq. 7."""
    return softplus(-beta * pairs.h)


def _smoothed(beta: float, epsilon: float) -> float:
    """The margin at which sigma(u) is 1 - epsilon."""
    return math.log((1 - epsilon) / epsilon) / beta if epsilon else math.inf


@facts(start=lambda beta, epsilon: LOG2, optimum=_smoothed)
def cdpo(pairs: PairLogRatios, *, beta: Positive, epsilon: MaybeFlipRate) -> Tensor:
    """(1 - e) l(u) + e l(-u), e the share of flipped labels. Mitchell 2023."""
    u = beta * pairs.h
    return (1 - epsilon) * softplus(-u) + epsilon * softplus(u)


@facts(start=lambda beta, epsilon: LOG2, optimum=infinite)
def robust(pairs: PairLogRatios, *, beta: Positive, epsilon: MaybeFlipRate) -> Tensor:
    """[(1 - e) l(u) - e l(-u)] / (1 - 2 e). Chowdhury et al. 2024. Unbounded below, linearly in u.

    Written as l(u) - u e / (1 - 2 e), which is the same since l(-u) = l(u) + u: the two terms of the paper's form are
    large and cancel.
    """
    u = beta * pairs.h
    return softplus(-u) - u * epsilon / (1 - 2 * epsilon)


@facts(start=lambda beta: 1 / (4 * beta**2), optimum=lambda beta: 1 / (2 * beta))
def ipo(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """(h - 1/(2 beta))^2. Azar et al. 2023, Eq. 17, tau = beta.

    h is the paper's log-ratio of whole responses, summed over tokens. TRL and HALOs divide by length: see ipo_avg.
    """
    return (pairs.h - 1 / (2 * beta)) ** 2


@facts(start=lambda beta: 1 / (4 * beta**2))
def ipo_avg(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """IPO on log-ratios averaged over their own response, (a/|w| - b/|l| - 1/(2 beta))^2, as in TRL and HALOs.

    Its target is 1/(2 beta) nats a token: for responses of L tokens the margin of the sequence is driven to about
    L/(2 beta), and pi(rejected) falls with it although the loss has converged.
    """
    per_token = pairs.log_ratios / pairs.lengths
    return (per_token[..., 0] - per_token[..., -1] - 1 / (2 * beta)) ** 2


@facts(start=lambda beta: 1.0, optimum=lambda beta: 1 / beta)
def hinge(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """max(0, 1 - u): SLiC's calibration term on normalised log-probs. Liu et al. 2023. Flat from h = 1/beta."""
    return relu(1 - beta * pairs.h)


@facts(start=lambda beta: 1.0, optimum=infinite)
def exponential(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """e^-u. Tang et al. 2024 (GPO). Plain, it overflows float32 at u = -88.7: see `base.exp`."""
    return exp(-beta * pairs.h, beta)


@facts(start=lambda beta: LOG2, optimum=infinite)
def probit(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """-log Phi(u): Gaussian noise in place of Gumbel. Thurstone 1927; Mosteller 1951.

    Through log_ndtr, whose value is right in the far tail where Phi underflows; its gradient there is computed from
    exp(log phi - log Phi).
    """
    return -LogNdtr.apply(beta * pairs.h)  # type: ignore[no-untyped-call, no-any-return]


class LogNdtr(torch.autograd.Function):
    """log Phi(x), with the slope phi(x)/Phi(x) in log space: torch's own is NaN for x below about -1e2 in float32."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        # float64 inside: near x = -1e4 the value is -5e7, and log phi - log Phi is a difference of two such numbers.
        wide = x.double()
        value: Tensor = torch.special.log_ndtr(wide)
        ctx.save_for_backward(wide, value)
        return value.to(x.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        x, value = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = torch.exp(-0.5 * x * x - 0.5 * math.log(2 * math.pi) - value)
        # Below -1e3 the difference has lost digits; the slope is -x - 1/x there, to one part in 1e12.
        slope = torch.where(x < -1e3, -x - 1 / x, slope)
        return grad * slope.to(grad.dtype)


@facts(optimum=lambda beta, score_gap: score_gap / beta)
def distill(pairs: PairLogRatios, *, beta: Positive, score_gap: NonNegative) -> Tensor:
    """(r_w - r_l - u)^2: fit the implicit reward to a reward model's scores. Fisch et al. 2024.

    The scores are the data's; where they have none, every pair has the gap `score_gap`.
    """
    gap = score_gap if pairs.scores is None else pairs.scores[..., 0] - pairs.scores[..., -1]
    return (gap - beta * pairs.h) ** 2


def _exo_start(beta: float, epsilon: float) -> float:
    return -LOG2 - 0.5 * math.log(epsilon) - 0.5 * math.log1p(-epsilon)


@facts(start=_exo_start, optimum=_smoothed)
def exo(pairs: PairLogRatios, *, beta: Positive, epsilon: FlipRate) -> Tensor:
    """KL(q || smoothed label), q = sigma(u). Ji et al. 2024 (EXO), Eq. 16.

    1 - q is sigma(-u) and log q a logsigmoid: q itself rounds to 1 and its slope to 0.
    """
    u = beta * pairs.h
    q, log_q, log_other = sigmoid(u), logsigmoid(u), logsigmoid(-u)
    return q * (log_q - torch.log1p(-epsilon)) + sigmoid(-u) * (log_other - torch.log(epsilon))


@facts(start=lambda beta, tau: 0.5 * LOG2 + 0.5)
def discopop(pairs: PairLogRatios, *, beta: Positive, tau: Positive) -> Tensor:
    """(1 - m) l(u) + m e^-u with m = sigma(u / tau): the log-ratio modulated loss of Lu et al. 2024, Eq. 5.

    As u -> -inf the factor m outruns e^-u (tau < 1), so the product is formed as exp(log m - u). From u = 0 gradient
    descent goes to a local minimum at u < 0: near tau = .05, u / tau = -2.37, where pi(rejected) has risen.
    """
    u = beta * pairs.h
    return sigmoid(-u / tau) * softplus(-u) + exp(logsigmoid(u / tau) - u, beta)


@facts()
def r_dpo(pairs: PairLogRatios, *, beta: Positive, alpha: NonNegative) -> Tensor:
    """l(u + alpha (|w| - |l|)). Park et al. 2024 (R-DPO).

    The sign follows from the objective: maximising r - alpha |y| makes the implicit reward beta log-ratio + alpha |y|,
    so r_w - r_l = u + alpha (|w| - |l|). A longer chosen response then needs less margin. Some code subtracts; that
    rewards length. The start depends on the lengths, so no value is stated.
    """
    lengths = pairs.lengths.to(pairs.logps.dtype)
    return softplus(-(beta * pairs.h + alpha * (lengths[..., 0] - lengths[..., -1])))


@facts(start=lambda beta: LOG2)
def sigmoid_norm(pairs: PairLogRatios, *, beta: Positive) -> Tensor:
    """l(beta (a/|w| - b/|l|)): length-normalised DPO. Lambert et al. 2024 (Tulu 3)."""
    per_token = pairs.log_ratios / pairs.lengths
    return softplus(-beta * (per_token[..., 0] - per_token[..., -1]))


@facts(start=lambda beta, epsilon: LOG2)
def aot(pairs: PairLogRatios, *, beta: Positive, epsilon: NonNegative) -> Tensor:
    """DPO between sorted batches: margins of the policy against margins of the reference. Melnyk et al. 2024."""
    policy = (pairs.logps[..., 0] - pairs.logps[..., -1]).sort(-1).values
    reference = (pairs.ref_logps[..., 0] - pairs.ref_logps[..., -1]).sort(-1).values
    u = beta * (policy - reference)
    return (1 - epsilon) * softplus(-u) + epsilon * softplus(u)


@facts(start=lambda beta, epsilon: LOG2)
def aot_unpaired(pairs: PairLogRatios, *, beta: Positive, epsilon: NonNegative) -> Tensor:
    """The same between sorted chosen and sorted rejected log-ratios, whatever pairs they came in."""
    u = beta * (pairs.a.sort(-1).values - pairs.b.sort(-1).values)
    return (1 - epsilon) * softplus(-u) + epsilon * softplus(u)


@facts(start=lambda beta, alpha, rho, mean_margin: LOG2)
def beta_dpo(
    pairs: PairLogRatios, *, beta: Positive, alpha: NonNegative, rho: NonNegative, mean_margin: NonNegative
) -> Tensor:
    """DPO with a beta for each batch, and outlying margins left out. Wu et al. 2024 (beta-DPO).

    beta_B = beta (1 + alpha (mean h - M0)), at least 1e-3, and the share `rho` of the pairs farthest from the batch's
    mean margin weighs nothing. The paper updates M0 and the spread as running means and *draws* the pairs to keep; a
    pure function has neither memory nor chance, so M0 is `mean_margin` and the farthest are dropped.
    """
    h = pairs.h.detach()
    mean = h.mean(-1, keepdim=True)
    scaled = (beta * (1 + alpha * (mean - mean_margin))).clamp(min=1e-3)
    count = h.shape[-1]
    keep = torch.ceil((1 - rho) * count - 1e-5).clamp(1, count)
    rank = (h - mean).abs().argsort(-1).argsort(-1)
    weight = torch.where(rank < keep, count / keep, torch.zeros_like(h))
    return weight * softplus(-scaled * pairs.h)
