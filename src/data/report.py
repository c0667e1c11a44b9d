"""What is in a data set: counts, lengths, duplicates, contradictions, and what it shares with another."""

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.data.pairs import Ids, PairData

QUANTILES = {"min": 0.0, "median": 0.5, "mean": None, "p95": 0.95, "max": 1.0}
MOST_REPEATED = 5  # responses listed


def data_report(data: PairData, against: PairData | None = None) -> dict[str, Any]:
    """All of it as plain JSON types.

    Args:
        data: text data, with `keys`. If it holds prompts out, they are compared with the others.
        against: another data set, such as the test split, whose prompts are looked for in this one.
    """
    made = {
        **data.report(),
        "prompts": len(set(data.keys)),
        "ranks": data.ranks,
        "lengths": _lengths(data),
        "chosen_longer": float((data.lengths[:, 0] > data.lengths[:, -1]).mean()),
        "score_gap": _score_gap(data),
        "duplicates": _duplicates(data),
        "judgements": judgements(data).plain(),
    }
    if data.held_out is not None:
        made["shared_with_held_out"] = shared(data, data.held_out)
    if against is not None:
        made["shared_with_other"] = shared(data, against)
    return made


@dataclass(frozen=True)
class Judgements:
    """How often judgements of the same two responses to the same prompt agree.

    compared: pairs of such judgements. contrary: of them, those that disagree. both_ways: response pairs that were
    judged in both orders.
    """

    compared: int
    contrary: int
    both_ways: int

    @property
    def flip_rate(self) -> float | None:
        """The probability e that a label is flipped, if labels are flipped independently of each other and alike.

        Two of them then disagree with probability 2 e (1 - e), which is solved for e. None where nothing was judged
        twice. Copies of a row count as judgements that agree: see the duplicates before believing it.
        """
        if not self.compared:
            return None
        return 0.5 * (1 - math.sqrt(max(0.0, 1 - 2 * self.contrary / self.compared)))

    def plain(self) -> dict[str, Any]:
        return {
            "compared": self.compared,
            "contrary": self.contrary,
            "both_ways": self.both_ways,
            "flip_rate": self.flip_rate,
        }


def judgements(data: PairData) -> Judgements:
    """Of a list of K responses each pair in it is a judgement."""
    votes: dict[tuple[str, Ids, Ids], list[int]] = defaultdict(lambda: [0, 0])
    for key, responses in zip(data.keys, data.responses, strict=True):
        for better, worse in itertools.combinations(responses, 2):
            first, second = sorted((better, worse))
            votes[key, first, second][better != first] += 1
    return Judgements(
        compared=sum(math.comb(a + b, 2) for a, b in votes.values()),
        contrary=sum(a * b for a, b in votes.values()),
        both_ways=sum(a > 0 and b > 0 for a, b in votes.values()),
    )


def shared(data: PairData, other: PairData) -> dict[str, int]:
    """Prompts that both have, before truncation and whatever their white space, and the pairs of `other` with one."""
    prompts = set(other.keys)
    common = prompts & set(data.keys)
    return {"prompts": len(common), "of_prompts": len(prompts), "pairs": sum(key in common for key in other.keys)}


def _lengths(data: PairData) -> dict[str, Any]:
    """Of each part the summary, and how many rows have 1, 2 to 3, 4 to 7, … tokens."""
    columns = {
        "prompt": np.array([len(ids) for ids in data.prompts]),
        "chosen": data.lengths[:, 0],
        "rejected": data.lengths[:, -1],
    }
    bins = int(max(values.max() for values in columns.values())).bit_length()
    edges = 2 ** np.arange(bins + 1)
    return {"edges": edges.tolist()} | {
        name: {
            **{key: float(values.mean() if q is None else np.quantile(values, q)) for key, q in QUANTILES.items()},
            "histogram": np.histogram(values, [*edges[:-1], edges[-1] - 0.5])[0].tolist(),
        }
        for name, values in columns.items()
    }


def _score_gap(data: PairData) -> dict[str, float] | None:
    """Between the first and the last response, where there are scores."""
    if not data.scores:
        return None
    gaps = np.array([scores[0] - scores[-1] for scores in data.scores])
    return {key: float(gaps.mean() if q is None else np.quantile(gaps, q)) for key, q in QUANTILES.items()}


def _duplicates(data: PairData) -> dict[str, Any]:
    """Rows that another row equals, and responses that are given to more than one prompt."""
    rows = Counter(zip(data.keys, data.responses, strict=True))
    prompts_of: dict[Ids, set[str]] = defaultdict(set)
    for key, responses in zip(data.keys, data.responses, strict=True):
        for response in responses:
            prompts_of[response].add(key)
    repeated = sorted((ids for ids in prompts_of if len(prompts_of[ids]) > 1), key=lambda ids: -len(prompts_of[ids]))
    return {
        "same_pair": len(data) - len(rows),
        "same_prompt": len(data) - len(set(data.keys)),
        "responses_of_several_prompts": len(repeated),
        "most_repeated": [{"prompts": len(prompts_of[ids]), "ids": list(ids)} for ids in repeated[:MOST_REPEATED]],
    }
