"""How a batch of prompts and their responses lies in a language model's input.

Legend: N rows of C columns, M columns whose logits are needed. Flattened, `targets_NM` without NO_TOKEN are always all
response tokens in the order prompt, rank, position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.pairs import Ids
from src.policy.base import pad_ids

Ranked = tuple[Ids, ...]  # prompt, then its responses: chosen, rejected

NO_TOKEN = -100  # cross_entropy's default ignore_index
PACK = 1024  # tokens; longer packs spend more on attention across prompts, which is masked out, than they save


@dataclass(frozen=True)
class Layout:
    """attention: True where a column may be read; [N, C] for all that come after it, or [N, 1, C, C] (query, key)."""

    ids_NC: Tensor
    positions_NC: Tensor
    attention: Tensor
    keep_M: Tensor
    targets_NM: Tensor


def padded_rows(batch: Sequence[Ranked], *, shifted: bool) -> Layout:
    """A row for each prompt and response, padded on the right. For any causal model.

    Padding on the left would align the responses, but then a padding column sees no column at all, which is NaN in some
    attentions, and models without position ids or with a recurrent state start at the wrong place.

    Args:
        shifted: a token is predicted from the column before it; otherwise from its own.
    """
    rows = [(prompt, ids) for prompt, *ranked in batch for ids in ranked]
    ids_NC, attention_NC = pad_ids([(*prompt, *(ids[:-1] if shifted else ids)) for prompt, ids in rows])
    targets_NC = torch.full_like(ids_NC, NO_TOKEN)
    for n, (prompt, ids) in enumerate(rows):
        first = len(prompt) - shifted
        targets_NC[n, first : first + len(ids)] = torch.tensor(ids)
    keep_M = torch.arange(min(len(prompt) for prompt, _ in rows) - shifted, ids_NC.shape[1])
    positions_NC = torch.arange(ids_NC.shape[1]).expand_as(ids_NC)
    return Layout(ids_NC, positions_NC, attention_NC, keep_M, targets_NC[:, keep_M])


def packs(batch: Sequence[Ranked], *, shifted: bool) -> Iterator[Layout]:
    """Prompts, each followed by its responses, in one row without padding, as many as PACK tokens hold (one at least).

    The prompt is computed once, a response does not see the others, and its positions start again after the prompt. For
    models to whom mask and positions say all about order.
    """
    pack: list[Ranked] = []
    size = 0
    for ranked in batch:
        tokens = sum(map(len, ranked))
        if pack and size + tokens > PACK:
            yield _pack(pack, shifted)
            pack, size = [], 0
        pack.append(ranked)
        size += tokens
    yield _pack(pack, shifted)


def _pack(batch: Sequence[Ranked], shifted: bool) -> Layout:
    ids: list[int] = []
    positions: list[int] = []
    part: list[tuple[int, int]] = []  # of each column: its prompt's number, and 0 in the prompt, k in response k
    keep: list[int] = []
    targets: list[int] = []
    for number, (prompt, *ranked) in enumerate(batch):
        ids += prompt
        positions += range(len(prompt))
        part += [(number, 0)] * len(prompt)
        before = len(ids) - 1
        for which, response in enumerate(ranked, start=1):
            seen = response[:-1] if shifted else response
            start = len(ids)
            ids += seen
            positions += range(len(prompt), len(prompt) + len(seen))
            part += [(number, which)] * len(seen)
            keep += [before] * shifted + list(range(start, len(ids)))
            targets += response
    prompt_C, which_C = torch.tensor(part).unbind(1)
    same_prompt = prompt_C[:, None] == prompt_C
    readable = (which_C == 0) | (which_C[:, None] == which_C)
    return Layout(
        ids_NC=torch.tensor([ids]),
        positions_NC=torch.tensor([positions]),
        attention=(same_prompt & readable).tril()[None, None],
        keep_M=torch.tensor(keep),
        targets_NM=torch.tensor([targets]),
    )
