"""Every logged quantity, in one place; docs/run-directory.md says what each means.

The same raw quantity for every loss: a loss may optimise a normalised or clipped margin, the log does not.
Everything is computed in float64 from the batch's token log-probs.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from src.kl import k1, k2, k3
from src.policy.base import TokenLogps

SIDES = {"chosen": 0, "rejected": -1}  # of a ranked list: its best and its worst


def step_metrics(
    block: Mapping[str, Tensor],
    beta_R: Tensor,
    objective: str,
    exact: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """All metrics of S steps, each [S, R], in the order they are written in.

    Args:
        block: of each step, `loss`, `kl_penalty`, `grad_norm`, `lr`, `tokens` and `pairs` [S, R]; `token_logps`, `mask`
            and, where there is a reference, `ref_token_logps` [S, R, B, K, T]; and what `exact` asks for.
        objective: as configured. exact: the policy's own metrics.
    """
    logps = TokenLogps(block["token_logps"], block["mask"])
    reference = TokenLogps(block["ref_token_logps"], block["mask"]) if "ref_token_logps" in block else None
    return {
        **{name: block[name] for name in ("loss", "kl_penalty")},
        **metrics_of(objective, logps, reference, beta_R),
        **{name: block[name] for name in ("grad_norm", "lr", "tokens", "pairs")},
        **exact(block),
    }


def metrics_of(objective: str, logps: TokenLogps, reference: TokenLogps | None, beta_R: Tensor) -> dict[str, Tensor]:
    """Metrics of pairs, those of the batch or others, that have a meaning for the objective, each [..., R]."""
    if objective == "reward_model":
        return reward_metrics(logps, beta_R)
    return sft_metrics(logps) if objective == "sft" else batch_metrics(logps, reference, beta_R)


def batch_metrics(logps: TokenLogps, reference: TokenLogps | None, beta_R: Tensor) -> dict[str, Tensor]:
    """Metrics of one batch, each [..., R].

    Args:
        logps, reference: values and mask [..., R, B, K, T], best response first.
            reference None: only what needs none is given.
        beta_R: the reward's scale, [R].
    """
    token = logps.values.detach().double()
    lengths = logps.mask.sum(-1)
    seq = token.sum(-1)  # [..., R, B, K]
    last = token.gather(-1, (lengths - 1).clamp(min=0)[..., None])[..., 0]
    metrics: dict[str, Tensor] = {}
    for name, side in SIDES.items():
        metrics[f"logps/{name}"] = seq[..., side].mean(-1)
        metrics[f"log_pi/{name}"] = _log_mean_exp(seq[..., side])
        metrics[f"log_pi/{name}_last_token"] = _log_mean_exp(last[..., side])
        metrics[f"log_pi/{name}_per_token"] = _log_mean_exp((seq / lengths)[..., side])
    if reference is None:
        return metrics
    return metrics | _against_reference(token - reference.values.double(), logps.mask, beta_R.double())


def reward_metrics(rewards: TokenLogps, beta_R: Tensor) -> dict[str, Tensor]:
    """A reward model's metrics, each [..., R]: its rewards stand where an implicit reward's stand, for one figure.

    rewards: values [..., R, B, K, 1]. beta scales them as it scales log-ratios, so that margins are logits of a
    preference in both cases; with beta = 1 the loss is the usual -log sigma(r_w - r_l).
    """
    found = _against_reference(rewards.values.detach().double(), rewards.mask, beta_R.double())
    return {name: values for name, values in found.items() if name.startswith("rewards/") or "preference" in name}


def sft_metrics(logps: TokenLogps) -> dict[str, Tensor]:
    """Those of chosen responses alone, and their perplexity per token: e to the mean of -log pi over all tokens.

    logps: values [..., R, B, 1, T].
    """
    of_both = batch_metrics(logps, None, torch.ones(()))
    of_chosen = {name: values for name, values in of_both.items() if "chosen" in name}
    mean = logps.values.detach().double().sum((-3, -2, -1)) / logps.mask.sum((-3, -2, -1))
    return {**of_chosen, "perplexity": (-mean).exp()}


def _against_reference(token_ratio: Tensor, mask: Tensor, beta: Tensor) -> dict[str, Tensor]:
    """Metrics of log-ratios to the reference, [..., R, B, K, T] by token."""
    metrics: dict[str, Tensor] = {}
    ratio = token_ratio.sum(-1)
    h = ratio[..., 0] - ratio[..., -1]
    for name, side in SIDES.items():
        metrics[f"log_ratios/{name}"] = ratio[..., side].mean(-1)
        metrics[f"rewards/{name}"] = beta * metrics[f"log_ratios/{name}"]
    metrics["margin"] = h.mean(-1)
    metrics["rewards/margins"] = beta * metrics["margin"]
    metrics["rewards/accuracies"] = (h > 0).double().mean(-1)
    metrics["implied_preference"] = torch.sigmoid(beta[:, None] * h).mean(-1)
    tokens = mask.sum((-3, -2, -1))
    for k in (k1, k2, k3):
        metrics[f"{k.__name__}_on_data"] = k(token_ratio).masked_fill(~mask, 0).sum((-3, -2, -1)) / tokens
    return metrics


def _log_mean_exp(x: Tensor) -> Tensor:
    """Log of the mean over the batch, [..., R, B] -> [..., R]."""
    return torch.logsumexp(x, -1) - math.log(x.shape[-1])
