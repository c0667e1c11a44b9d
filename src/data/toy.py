"""Small data sets that need no file and no tokenizer."""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval

from src.data.pairs import PairData, keep_usable


def notebook_pair() -> PairData:
    """One prompt, one chosen and one rejected response of four tokens each, vocabulary 32."""
    return keep_usable([((5, 8, 9, 10, 5, 3), (16, 29, 18, 17), (26, 14, 31, 0))], "data=notebook_pair")


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
) -> PairData:
    """Rankings of K responses drawn from known utilities: Plackett-Luce, that is utility plus Gumbel noise, sorted.

    Response k of every prompt has utility `spread` times a standard normal number; each prompt is ranked `rankings`
    times. The scores of the data are the true utilities.
    """
    generator = np.random.default_rng(seed)
    utility = spread * generator.standard_normal((prompts, responses))
    noisy = utility[:, None, :] + generator.gumbel(size=(prompts, rankings, responses))
    order = np.argsort(-noisy, axis=-1)
    rows = [((x,), *((int(k),) for k in row)) for x in range(prompts) for row in order[x]]
    scores = tuple(tuple(float(utility[x, k]) for k in row) for x in range(prompts) for row in order[x])
    return keep_usable(rows, "data=ranked", candidates=tuple((k,) for k in range(responses)), scores=scores)


def _log_odds(p: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(p) - np.log1p(-p))
