"""The step-0 gate: a policy that starts as its reference must look like it.

Before the first update every log-ratio is 0 and the loss has a value known beforehand. Wrong chat templates, stale
reference caches, dropout left on, dtype slips and losses that are silently another loss all fail here, before any time
is spent.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.config import RunConfig
from src.losses.base import facts_of

CAUSES = (
    "likely causes: reference log-probs of other data, other weights or another template; dropout left on; "
    "policy and reference in different dtypes; a loss that is not the one named"
)


def step0_failures(
    runs: Sequence[RunConfig], log_ratios: Tensor, token_logps: Tensor, loss_R: Tensor, weights_RN: Tensor
) -> dict[int, str]:
    """The runs that fail, with the reason in one line.

    Args:
        log_ratios: [R, N, K], nats. token_logps: [R, B, K, T], for the size of a rounding error.
    """
    eps = torch.finfo(getattr(torch, runs[0].dtype)).eps
    allowed_R = 64 * eps * (1 + token_logps.detach().sum(-1).abs().amax((1, 2)))
    loss_R, largest_R = loss_R.detach(), log_ratios.detach().abs().amax((1, 2))
    failures = {}
    for r, run in enumerate(runs):
        if run.model.params.get("init") == "independent":
            continue
        largest, allowed, loss = float(largest_R[r]), float(allowed_R[r]), float(loss_R[r])
        if not largest <= allowed:
            failures[r] = (
                f"step-0 gate: the policy is a copy of the reference, yet a log-ratio is {largest:.3g} nats "
                f"(rounding allows {allowed:.2g}); {CAUSES}"
            )
            continue
        start = facts_of(run.loss).start
        if start is None:
            continue
        expected = start(**run.loss.params) * float(weights_RN[r].sum())
        if not abs(loss - expected) <= min(0.05, 1e4 * eps) * max(abs(expected), 1e-3):
            failures[r] = (
                f"step-0 gate: loss={run.loss.name} must start at {expected:.8g} and starts at {loss:.8g}; {CAUSES}"
            )
    return failures
