"""An explicit KL penalty to the reference, added to any preference loss."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from src import kl
from src.losses.base import PairLogRatios

Form = Literal["reverse", "forward", "js", "k1", "k2", "k3"]

EXACT = {"reverse": kl.reverse_kl, "forward": kl.forward_kl, "js": kl.jensen_shannon}


class StackPenalty:
    """Each run's coefficient times its form of the KL, mean over the response tokens of the batch, [R], in nats.

    k1, k2, k3 are taken of the data's own tokens, with the gradient through their log-probs ("as a loss" in `src.kl`):
    they pull at the responses of the data and say nothing of others. Since those tokens are not drawn from the policy,
    the gradients are not those of a KL, as they would be for the policy's own samples. reverse, forward and js compare
    the whole next-token distributions at the same positions, exactly; the reference's must be kept for that.
    """

    def __init__(self, coefficients: Sequence[float], forms: Sequence[Form], device: torch.device) -> None:
        self._coefficients = torch.tensor(coefficients, dtype=torch.float64, device=device)
        members: dict[Form, list[int]] = defaultdict(list)
        for run, (coefficient, form) in enumerate(zip(coefficients, forms, strict=True)):
            if coefficient > 0:
                members[form].append(run)
        self._groups = {form: torch.tensor(runs, device=device) for form, runs in members.items()}
        self.vocabulary = any(form in EXACT for form in members)

    def __call__(self, pairs: PairLogRatios) -> Tensor:
        penalty = torch.zeros_like(pairs.logps[:, 0, 0])
        for form, runs in self._groups.items():
            per_token, mask = _per_token(pairs.of_runs(runs), form)
            mean = per_token.masked_fill(~mask, 0).sum((1, 2, 3)) / mask.sum((1, 2, 3))
            penalty = penalty.index_add(0, runs, self._coefficients[runs].to(mean.dtype) * mean)
        return penalty


def _per_token(pairs: PairLogRatios, form: Form) -> tuple[Tensor, Tensor]:
    """KL at each response token and the mask, [R, N, K, T]."""
    assert pairs.token_logps is not None and pairs.ref_token_logps is not None and pairs.mask is not None
    if form in kl.ESTIMATORS:
        return kl.ESTIMATORS[form](pairs.token_logps - pairs.ref_token_logps), pairs.mask
    assert pairs.log_pi is not None and pairs.ref_log_pi is not None
    return EXACT[form](pairs.log_pi, pairs.ref_log_pi), pairs.mask
