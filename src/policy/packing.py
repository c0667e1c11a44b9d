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
    """A row for each response: its prompt padded on the left, itself on the right, so that all responses start in the
    same column. For any causal model.

    Args:
        shifted: a token is predicted from the column before it; otherwise from its own.
    """
    rows = [(prompt, ids) for prompt, *both in batch for ids in both]
    mirrored = pad_ids([prompt[::-1] for prompt, _ in rows])
    prompts_NP, prompt_mask_NP = (x.flip(1) for x in mirrored)
    responses_NT, mask_NT = pad_ids([ids for _, ids in rows])
    columns = prompts_NP.shape[1] + responses_NT.shape[1] - shifted  # the last column predicts nothing
    attention_NC = torch.cat([prompt_mask_NP, mask_NT], 1)[:, :columns]
    return Layout(
        ids_NC=torch.cat([prompts_NP, responses_NT], 1)[:, :columns],
        positions_NC=(attention_NC.cumsum(1) - 1).clamp(min=0),
        attention=attention_NC,
        keep_K=torch.arange(columns - responses_NT.shape[1], columns),
        targets_NK=responses_NT.masked_fill(~mask_NT, NO_TOKEN),
    )


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
