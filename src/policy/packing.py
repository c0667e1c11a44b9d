"""How a batch of pairs lies in a language model's input.

Legend: N rows of C columns, K columns whose logits are needed. Flattened, `targets_NK` without NO_TOKEN are always all
response tokens in the order pair, chosen before rejected, position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.pairs import Ids
from src.policy.base import pad_ids

Pair = tuple[Ids, Ids, Ids]  # prompt, chosen, rejected

NO_TOKEN = -100  # cross_entropy's default ignore_index
PACK = 1024  # tokens; longer packs spend more on attention between pairs, which is masked out, than they save


@dataclass(frozen=True)
class Layout:
    """attention: True where a column may be read; [N, C] for all that come after it, or [N, 1, C, C] (query, key)."""

    ids_NC: Tensor
    positions_NC: Tensor
    attention: Tensor
    keep_K: Tensor
    targets_NK: Tensor


def padded_rows(batch: Sequence[Pair], *, shifted: bool) -> Layout:
    """A row for each prompt and response, padded on the right. For any causal model.

    Padding on the left would align the responses, but then a padding column sees no column at all, which is NaN in some
    attentions, and models without position ids or with a recurrent state start at the wrong place.

    Args:
        shifted: a token is predicted from the column before it; otherwise from its own.
    """
    rows = [(prompt, ids) for prompt, *both in batch for ids in both]
    ids_NC, attention_NC = pad_ids([(*prompt, *(ids[:-1] if shifted else ids)) for prompt, ids in rows])
    targets_NC = torch.full_like(ids_NC, NO_TOKEN)
    for n, (prompt, ids) in enumerate(rows):
        first = len(prompt) - shifted
        targets_NC[n, first : first + len(ids)] = torch.tensor(ids)
    keep_K = torch.arange(min(len(prompt) for prompt, _ in rows) - shifted, ids_NC.shape[1])
    positions_NC = torch.arange(ids_NC.shape[1]).expand_as(ids_NC)
    return Layout(ids_NC, positions_NC, attention_NC, keep_K, targets_NC[:, keep_K])


def packs(batch: Sequence[Pair], *, shifted: bool) -> Iterator[Layout]:
    """Pairs one after another in one row without padding, as many as PACK tokens hold (one at least).

    Each pair is prompt, chosen, rejected: the prompt is computed once, the rejected response does not see the chosen
    one, and its positions start again after the prompt. For models to whom mask and positions say all about order.
    """
    pack: list[Pair] = []
    size = 0
    for pair in batch:
        tokens = sum(map(len, pair))
        if pack and size + tokens > PACK:
            yield _pack(pack, shifted)
            pack, size = [], 0
        pack.append(pair)
        size += tokens
    yield _pack(pack, shifted)


def _pack(batch: Sequence[Pair], shifted: bool) -> Layout:
    ids: list[int] = []
    positions: list[int] = []
    part: list[tuple[int, int]] = []  # of each column: its pair, and 0 in the prompt, 1 in chosen, 2 in rejected
    keep: list[int] = []
    targets: list[int] = []
    for number, (prompt, *both) in enumerate(batch):
        ids += prompt
        positions += range(len(prompt))
        part += [(number, 0)] * len(prompt)
        before = len(ids) - 1
        for which, response in enumerate(both, start=1):
            seen = response[:-1] if shifted else response
            start = len(ids)
            ids += seen
            positions += range(len(prompt), len(prompt) + len(seen))
            part += [(number, which)] * len(seen)
            keep += [before] * shifted + list(range(start, len(ids)))
            targets += response
    pair_C, which_C = torch.tensor(part).unbind(1)
    same_pair = pair_C[:, None] == pair_C
    readable = (which_C == 0) | (which_C[:, None] == which_C)
    return Layout(
        ids_NC=torch.tensor([ids]),
        positions_NC=torch.tensor([positions]),
        attention=(same_pair & readable).tril()[None, None],
        keep_K=torch.tensor(keep),
        targets_NK=torch.tensor([targets]),
    )
