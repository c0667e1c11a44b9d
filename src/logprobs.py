"""From token log-probs to what a loss sees."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.losses.base import PairLogRatios
from src.policy.base import TokenLogps

Form = Literal["sequence", "notebook_per_token"]


def pair_log_ratios(
    logps: TokenLogps,
    reference: TokenLogps | None,
    row_lengths_RB: Tensor,
    form: Form,
    scores_RBK: Tensor | None = None,
) -> tuple[PairLogRatios, Tensor]:
    """Lists of ranked responses [R, N, K] and the weights [R, N] their losses are summed with.

    `sequence`: the published form. Log-probs are summed over the response, a batch's loss is the mean over its lists.

    `notebook_per_token`: the source notebooks' form. The loss is applied to each response token by itself, and the sum
    is divided by the number of tokens of the whole row, prompt included. Token t of the chosen response is paired
    with token t of the rejected one; where one is shorter its log-ratio counts as 0.

    Args:
        logps, reference: values [R, B, K, T], with whole distributions where a loss asks for them.
        row_lengths_RB: tokens of prompt and longest response, [R, B].
        reference: None where no loss needs one; its log-probs are NaN then, so that nothing can use them unnoticed.
        scores_RBK: the data's scores.
    """
    if reference is None:
        reference = TokenLogps(torch.full_like(logps.values, torch.nan), logps.mask)
    mask = logps.mask.expand_as(logps.values)
    if form == "sequence":
        pairs = PairLogRatios(
            logps.values.sum(-1), reference.values.sum(-1), mask.sum(-1), scores_RBK,
            logps.values, reference.values, mask, logps.log_pi, reference.log_pi,
        )  # fmt: skip
        return pairs, torch.full_like(pairs.logps[..., 0], 1 / mask.shape[1])
    runs = logps.values.shape[0]

    def by_token(x: Tensor) -> Tensor:
        """[R, B, K, T, …] -> [R, B T, K, …]: a list of one-token responses for each position."""
        return x.transpose(2, 3).flatten(1, 2)

    policy, ref, real = by_token(logps.values), by_token(reference.values), by_token(mask)
    scores = None if scores_RBK is None else scores_RBK.repeat_interleave(mask.shape[-1], 1)
    whole = [None if log_pi is None else by_token(log_pi).unsqueeze(-2) for log_pi in (logps.log_pi, reference.log_pi)]
    pairs = PairLogRatios(
        policy, ref, real.long().clamp(min=1), scores, policy[..., None], ref[..., None], real[..., None], *whole
    )
    either = mask.any(2).to(policy.dtype)  # [R, B, T]
    return pairs, (either / row_lengths_RB.sum(1)[:, None, None]).reshape(runs, -1)


@dataclass(frozen=True)
class ReferenceLogps:
    """Reference log-probs of all P prompts of each run, computed once: values and mask [R, P, K, T]."""

    values: Tensor
    mask: Tensor
    log_pi: Tensor | None = None

    def of(self, index_RB: Tensor, width: int) -> TokenLogps:
        """Those of a batch, cut to `width` response tokens."""
        run = torch.arange(index_RB.shape[0], device=index_RB.device)[:, None]
        whole = None if self.log_pi is None else self.log_pi[run, index_RB, :, :width]
        return TokenLogps(self.values[run, index_RB, :, :width], self.mask[run, index_RB, :, :width], whole)
