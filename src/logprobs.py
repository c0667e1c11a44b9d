"""From token log-probs to what a loss sees."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.losses.base import PairLogRatios
from src.policy.base import TokenLogps

Form = Literal["sequence", "notebook_per_token"]


def pair_log_ratios(
    logps: TokenLogps, reference: TokenLogps, row_lengths_RB: Tensor, form: Form
) -> tuple[PairLogRatios, Tensor]:
    """Pairs [R, N] and the weights [R, N] their losses are summed with.

    `sequence`: the published form. Log-probs are summed over the response, a batch's loss is the mean over pairs.

    `notebook_per_token`: the source notebooks' form. The loss is applied to each response token by itself, and the sum
    is divided by the number of tokens of the whole row, prompt included. Token t of the chosen response is paired
    with token t of the rejected one; where one is shorter its log-ratio counts as 0.

    Args:
        logps, reference: values [R, B, 2, T].
        row_lengths_RB: tokens of prompt and longer response, [R, B].
    """
    mask = logps.mask.expand_as(logps.values)
    if form == "sequence":
        lengths = mask.sum(-1)
        weights = torch.full_like(logps.values[:, :, 0, 0], 1 / mask.shape[1])
        return PairLogRatios(logps.values.sum(-1), reference.values.sum(-1), lengths), weights
    runs = logps.values.shape[0]
    per_token = [x.transpose(2, 3).reshape(runs, -1, 2) for x in (logps.values, reference.values, mask.long())]
    either = mask.any(2).to(logps.values.dtype)  # [R, B, T]
    return PairLogRatios(*per_token), (either / row_lengths_RB.sum(1)[:, None, None]).flatten(1)


@dataclass(frozen=True)
class ReferenceLogps:
    """Reference log-probs of all P pairs of each run, computed once: values and mask [R, P, 2, T]."""

    values: Tensor
    mask: Tensor

    def of(self, index_RB: Tensor, width: int) -> TokenLogps:
        """Those of a batch, cut to `width` response tokens."""
        run = torch.arange(index_RB.shape[0], device=index_RB.device)[:, None]
        return TokenLogps(self.values[run, index_RB, :, :width], self.mask[run, index_RB, :, :width])
