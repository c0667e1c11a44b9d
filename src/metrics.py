"""Every logged quantity, in one place; docs/run-directory.md says what each means.

The same raw quantity for every loss: a loss may optimise a normalised or clipped margin, the log does not.
Everything is computed in float64 from the batch's token log-probs.
"""

import math

import torch
from torch import Tensor

from src.policy.base import TokenLogps

SIDES = ("chosen", "rejected")


def batch_metrics(logps: TokenLogps, reference: TokenLogps, beta_R: Tensor) -> dict[str, Tensor]:
    """Metrics of one batch, each [R].

    Args:
        logps, reference: values [R, B, 2, T].
        beta_R: the reward's scale, [R].
    """
    mask = logps.mask
    token = logps.values.detach().double()
    token_ratio = token - reference.values.double()
    lengths = mask.sum(-1)
    seq, ratio = token.sum(-1), token_ratio.sum(-1)  # [R, B, 2]
    h = ratio[..., 0] - ratio[..., 1]
    beta = beta_R.double()
    last = token.gather(-1, (lengths - 1).clamp(min=0)[..., None])[..., 0]
    metrics: dict[str, Tensor] = {}
    for side, name in enumerate(SIDES):
        metrics[f"logps/{name}"] = seq[..., side].mean(-1)
        metrics[f"log_ratios/{name}"] = ratio[..., side].mean(-1)
        metrics[f"rewards/{name}"] = beta * ratio[..., side].mean(-1)
        metrics[f"log_pi/{name}"] = _log_mean_exp(seq[..., side])
        metrics[f"log_pi/{name}_last_token"] = _log_mean_exp(last[..., side])
        metrics[f"log_pi/{name}_per_token"] = _log_mean_exp((seq / lengths)[..., side])
    metrics["margin"] = h.mean(-1)
    metrics["rewards/margins"] = beta * metrics["margin"]
    metrics["rewards/accuracies"] = (h > 0).double().mean(-1)
    metrics["implied_preference"] = torch.sigmoid(beta[:, None] * h).mean(-1)
    tokens = lengths.sum((1, 2))
    for name, k in _schulman(token_ratio).items():
        metrics[f"{name}_on_data"] = (k * mask).sum((1, 2, 3)) / tokens
    return metrics


def _schulman(log_ratio: Tensor) -> dict[str, Tensor]:
    """k1, k2, k3 (Schulman 2020) with log_ratio = log pi - log ref, so r = ref/pi = exp(-log_ratio)."""
    return {"k1": log_ratio, "k2": log_ratio.square() / 2, "k3": torch.expm1(-log_ratio) + log_ratio}


def _log_mean_exp(x: Tensor) -> Tensor:
    """Log of the mean over the batch, [R, B] -> [R]."""
    return torch.logsumexp(x, -1) - math.log(x.shape[-1])
