"""Small data with held-out pairs, which no data source has that needs no tokenizer."""

from dataclasses import replace

from src.data.pairs import PairData, keep_usable


def responses(*pairs: tuple[int, int], prompts: int = 1) -> PairData:
    """One-token prompts and responses: of each pair the first is preferred."""
    rows = [((x,), (chosen,), (rejected,)) for x in range(prompts) for chosen, rejected in pairs]
    return keep_usable(rows, "test", candidates=((0,), (1,)))


def one_pair() -> PairData:
    """0 is preferred to 1; so it is in the three held-out pairs."""
    return replace(responses((0, 1)), held_out=responses((0, 1), prompts=3))


def texts() -> PairData:
    """Five pairs for training and seven held out, of all lengths up to those of the longest for training."""
    rows = [
        (tuple(range(1, 3 + n % 4)), tuple(range(n, n + 1 + n % 3)), tuple(range(9 + n, 11 + n))) for n in range(12)
    ]
    longest = ((1, 2, 3, 4, 5, 6), (7, 8, 9, 10), (11, 12))
    return replace(keep_usable([longest, *rows[:4]], "test"), held_out=keep_usable(rows[5:], "test"))
