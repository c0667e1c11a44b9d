"""Reference log-probs: computed once for all pairs, before the first update."""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from src.data.pairs import PairData
from src.logprobs import ReferenceLogps
from src.policy.base import Policy

CHUNK = 16  # pairs a forward pass; bounds memory, changes nothing else


@torch.no_grad()
def reference_logps(policy: Policy, data: Sequence[PairData], device: torch.device) -> ReferenceLogps:
    """What `policy` gives every pair as it stands: values and mask [R, P, 2, T]."""
    pairs = len(data[0])
    chunks = []
    for start in range(0, pairs, CHUNK):
        index = torch.arange(start, min(start + CHUNK, pairs), device=device)
        chunks.append(policy.token_logps(index.expand(policy.runs, -1)))
    width = max(chunk.values.shape[-1] for chunk in chunks)

    def join(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([pad(x, (0, width - x.shape[-1])) for x in tensors], dim=1)

    return ReferenceLogps(join([c.values for c in chunks]), join([c.mask.expand_as(c.values) for c in chunks]))
