"""Small data sets that need no file and no tokenizer."""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Interval, MinLen

from src.data.pairs import Ids, PairData, keep_usable
from src.errors import BadInput

Token = Annotated[int, Ge(0)]
Written = Annotated[list[list[Token]], MinLen(3)]  # prompt, then responses, best first


def notebook_pair() -> PairData:
    """One prompt, one chosen and one rejected response of four tokens each, vocabulary 32."""
    return keep_usable([((5, 8, 9, 10, 5, 3), (16, 29, 18, 17), (26, 14, 31, 0))], "data=notebook_pair")


def token_ids(*, rows: Annotated[list[Written], MinLen(1)], held_out: list[Written]) -> PairData:
    """Pairs, or ranked lists, written out: each row a prompt and its responses, best first, as token ids.

    Raises:
        BadInput: rows rank different numbers of responses, or none can be used.
    """
    counts = {len(row) - 1 for row in (*rows, *held_out)}
    if len(counts) > 1:
        raise BadInput(
            f"data=token_ids: rows rank {' and '.join(map(str, sorted(counts)))} responses: give all as many"
        )

    def read(written: list[Written], name: str) -> PairData:
        return keep_usable([tuple(map(tuple, row)) for row in written], f"data=token_ids: data.{name}")

    return replace(read(rows, "rows"), held_out=read(held_out, "held_out") if held_out else None)


def synthetic(
    *,
    prompts: Annotated[int, Ge(1)],
    p_star: Annotated[float, Interval(ge=0, le=1)],
    comparisons: Annotated[int, Ge(1)],
    seed: int,
) -> PairData:
    """`prompts` prompts; for each, responses 0 and 1 are compared `comparisons` times, and 0 wins with probability p*.

    The finite-data experiment: with few comparisons a true preference of 0.8 often looks unanimous, and then nothing
    in the data says that response 1 should ever win.
    """
    gap = _log_odds(p_star)
    wins = np.random.default_rng(seed).random((prompts, comparisons)) < p_star
    rows = (
        ((x,), (0,) if first_wins else (1,), (1,) if first_wins else (0,))
        for x in range(prompts)
        for first_wins in wins[x]
    )
    # The true reward gap, by the label each comparison got: negative where the worse response won.
    scores = tuple((gap, 0.0) if first_wins else (0.0, gap) for x in range(prompts) for first_wins in wins[x])
    known = scores if np.isfinite(gap) else ()
    return keep_usable(rows, "data=synthetic", candidates=((0,), (1,)), scores=known)


def ranked(
    *,
    prompts: Annotated[int, Ge(1)],
    responses: Annotated[int, Ge(2)],
    rankings: Annotated[int, Ge(1)],
    spread: Annotated[float, Ge(0)],
    seed: int,
    best_worst: bool = False,
) -> PairData:
    """Rankings of K responses drawn from known utilities: Plackett-Luce, that is utility plus Gumbel noise, sorted.

    Response k of every prompt has utility `spread` times a standard normal number; each prompt is ranked `rankings`
    times. The scores of the data are the true utilities. With `best_worst` only the first and the last of each of these
    rankings are kept, as a pair.
    """
    generator = np.random.default_rng(seed)
    utility = spread * generator.standard_normal((prompts, responses))
    noisy = utility[:, None, :] + generator.gumbel(size=(prompts, rankings, responses))
    order = np.argsort(-noisy, axis=-1)
    if best_worst:
        order = order[..., [0, -1]]
    rows = [((x,), *((int(k),) for k in row)) for x in range(prompts) for row in order[x]]
    scores = tuple(tuple(float(utility[x, k]) for k in row) for x in range(prompts) for row in order[x])
    return keep_usable(rows, "data=ranked", candidates=tuple((k,) for k in range(responses)), scores=scores)


def gold(
    *,
    prompts: Annotated[int, Ge(1)],
    held_out: Annotated[int, Ge(0)],
    comparisons: Annotated[int, Ge(1)],
    vocabulary: Annotated[int, Ge(2)],
    prompt_tokens: Annotated[int, Ge(1)],
    response_tokens: Annotated[list[Annotated[int, Ge(1)]], MinLen(2)],
    spread: Annotated[float, Ge(0)],
    labels: Literal["sampled", "certain"],
    seed: int,
) -> PairData:
    """Random responses to random prompts, compared by a reward that is known: the gold reward.

    Token k is worth `spread` times a standard normal number, and a response the sum over its tokens, whatever the
    prompt: what is learned of some prompts and responses can be right about others. Pairs are of two different
    responses; each has uniformly drawn tokens, and their number is uniform between both ends of `response_tokens`.
    With one token a response is an action of a table. The scores of the data are the rewards, also of the `held_out`
    further prompts, which have as many comparisons each.

    Args:
        labels: sampled: the better response wins with probability sigma(difference of rewards), as Bradley and Terry
            have it. certain: it always wins.

    Raises:
        BadInput: there are not so many different prompts, or the ends of `response_tokens` are not two in order.
    """
    if len(response_tokens) != 2 or response_tokens[0] > response_tokens[1]:
        raise BadInput(f"data.response_tokens={response_tokens} must be the least and the largest number")
    if vocabulary**prompt_tokens < prompts + held_out:
        wanted = f"data=gold: {prompts + held_out} different prompts"
        raise BadInput(f"{wanted} of {prompt_tokens} tokens out of {vocabulary} do not exist")
    generator = np.random.default_rng(seed)
    utility = spread * generator.standard_normal(vocabulary)

    def ids(count: int) -> Ids:
        return tuple(generator.integers(vocabulary, size=count).tolist())

    def pair() -> tuple[Ids, Ids]:
        lengths = generator.integers(response_tokens[0], response_tokens[1] + 1, size=2)
        first, second = ids(lengths[0]), ids(lengths[1])
        return (first, second) if first != second else pair()

    drawn: dict[Ids, None] = {}
    while len(drawn) < prompts + held_out:
        drawn[ids(prompt_tokens)] = None
    rows, scores = [], []
    for prompt in drawn:
        for _ in range(comparisons):
            first, second = pair()
            reward = [float(utility[list(response)].sum()) for response in (first, second)]
            gap = reward[0] - reward[1]
            wins = gap > 0 if labels == "certain" else generator.random() < 1 / (1 + np.exp(-gap))
            rows.append((prompt, first, second) if wins else (prompt, second, first))
            scores.append((reward[0], reward[1]) if wins else (reward[1], reward[0]))
    actions = tuple((k,) for k in range(vocabulary)) if list(response_tokens) == [1, 1] else ()
    cut = prompts * comparisons

    def part(where: slice) -> PairData:
        return keep_usable(rows[where], "data=gold", candidates=actions, scores=tuple(scores[where]))

    return replace(part(slice(cut)), held_out=part(slice(cut, None)) if held_out else None)


def _log_odds(p: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(p) - np.log1p(-p))
