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
    wins = np.random.default_rng(seed).random((prompts, comparisons)) < p_star
    rows = (
        ((x,), (0,) if first_wins else (1,), (1,) if first_wins else (0,))
        for x in range(prompts)
        for first_wins in wins[x]
    )
    return keep_usable(rows, "data=synthetic", candidates=((0,), (1,)))
