"""A weighted sum of losses."""

import torch
from torch import Tensor

from src.config import Choice
from src.losses.base import Facts, PairLogRatios, facts, facts_of


def _facts(terms: dict[str, Choice], weights: dict[str, float]) -> Facts:
    parts = {name: facts_of(term) for name, term in terms.items()}
    starts = {name: part.start(**terms[name].params) for name, part in parts.items() if part.start is not None}
    total = sum(weights[name] * value for name, value in starts.items())
    return Facts(
        start=(lambda **_: total) if starts.keys() == parts.keys() else None,
        lists=all(part.lists for part in parts.values()),
        reference=any(part.reference for part in parts.values()),
        tokens=any(part.tokens for part in parts.values()),
        vocabulary=any(part.vocabulary for part in parts.values()),
    )


@facts(depends=_facts)
def mix(pairs: PairLogRatios, *, terms: dict[str, Choice], weights: dict[str, float]) -> Tensor:
    """sum_i weights_i L_i."""
    total = torch.zeros_like(pairs.logps[..., 0])
    for name, term in terms.items():
        hyper = {
            key: torch.tensor([[value]], dtype=total.dtype, device=total.device) if isinstance(value, float) else value
            for key, value in term.params.items()
        }
        total = total + weights[name] * term.function(pairs, **hyper)
    return total
