"""Reference log-probs: computed once for all prompts, before the first update."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from src.data.pairs import PairData
from src.logprobs import ReferenceLogps
from src.policy.base import Policy

CHUNK = 16  # prompts a forward pass; bounds memory, changes nothing else


@torch.no_grad()
def reference_logps(
    policy: Policy, data: Sequence[PairData], device: torch.device, vocabulary: bool = False
) -> ReferenceLogps:
    """What `policy` gives every response as it stands: values and mask [R, P, K, T].

    vocabulary: keep the whole next-token distributions too, [R, P, K, T, V]: 4 V bytes for each token of the data.
    """
    prompts = len(data[0])
    chunks = []
    for start in range(0, prompts, CHUNK):
        index = torch.arange(start, min(start + CHUNK, prompts), device=device)
        chunks.append(policy.token_logps(index.expand(policy.runs, -1), vocabulary))
    width = max(chunk.values.shape[-1] for chunk in chunks)

    def join(tensors: list[Tensor], trailing: int = 0) -> Tensor:
        """Pad the token dimension, which `trailing` others follow, to a common width."""
        padding = [0] * 2 * trailing
        return torch.cat([pad(x, (*padding, 0, width - x.shape[-1 - trailing])) for x in tensors], dim=1)

    whole = [chunk.log_pi for chunk in chunks if chunk.log_pi is not None]
    return ReferenceLogps(
        join([c.values for c in chunks]),
        join([c.mask.expand_as(c.values) for c in chunks]),
        join(whole, trailing=1) if whole else None,
    )
