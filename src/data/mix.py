"""A sample of several data sets, in given proportions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from src.config import Choice
from src.data.pairs import PairData
from src.errors import BadInput


def mix(
    *,
    parts: dict[str, Choice],
    weights: dict[str, Annotated[float, Ge(0)]],
    size: Annotated[int, Ge(1)],
    seed: Annotated[int, Ge(0)],
    tokenizer: Any,
) -> PairData:
    """`size` pairs, of each part its share by weight, in random order and without replacement.

    What a seed takes of a part, it also takes when the part's share is larger. Held-out pairs are sampled in the same
    proportions, as many as the scarcest part has. `dropped` and `cut` are those of whole parts, `noted` says how many
    pairs of each part were taken. The scores are kept if all parts have them.

    Args:
        parts: by name; each is a choice of conf/data.
        weights: of the parts; their sum does not matter.

    Raises:
        BadInput: parts and weights do not match, a part has too few pairs, or the parts cannot be mixed.
    """
    if parts.keys() != weights.keys() or not sum(weights.values()):
        raise BadInput(f"data.weights={weights} must give each of the parts {', '.join(parts)} a weight, not all 0")
    whole = {name: _build(part, tokenizer) for name, part in parts.items()}
    _check_alike(parts, whole)
    shares = _shares(weights, size)
    for name, share in shares.items():
        if share > len(whole[name]):
            raise BadInput(
                f"data=mix: part {name} has {len(whole[name])} usable pairs, and {share} are its share of {size}; "
                "lower data.size or its weight"
            )
    training = _sample(whole, shares, seed)
    held_out = {name: data.held_out for name, data in whole.items() if data.held_out is not None}
    whole_held_out = _sample(held_out, _most(held_out, weights), seed) if held_out else None
    counted = {
        kind: Counter({f"{name}: {key}": n for name, data in whole.items() for key, n in getattr(data, kind).items()})
        for kind in ("dropped", "cut")
    }
    return _joined([training], held_out=whole_held_out, noted=training.noted, **counted)


def _build(part: Choice, tokenizer: Any) -> PairData:
    made: PairData = part.build(**({"tokenizer": tokenizer} if part.needs("tokenizer") else {}))
    return made


def _check_alike(parts: Mapping[str, Choice], whole: Mapping[str, PairData]) -> None:
    ranks = {name: data.ranks for name, data in whole.items()}
    if len(set(ranks.values())) > 1:
        raise BadInput(f"data=mix: the parts have different numbers of responses a prompt: {_listed(ranks)}")
    shares = {name: part.params.get("holdout", 0.0) for name, part in parts.items()}
    if len(set(shares.values())) > 1:  # a prompt of two parts could be on both sides
        raise BadInput(f"data=mix: the parts hold out different shares: {_listed(shares)}")


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _shares(weights: Mapping[str, float], size: int) -> dict[str, int]:
    """Whole numbers that add up to `size`: rounded down, and what is left goes to the largest remainders."""
    exact = {name: size * weight / sum(weights.values()) for name, weight in weights.items()}
    shares = {name: int(share + 1e-9) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: size - sum(shares.values())]:
        shares[name] += 1
    return shares


def _most(parts: Mapping[str, PairData], weights: Mapping[str, float]) -> dict[str, int]:
    """The largest shares in proportion to the weights that the parts have."""
    largest = min(len(data) / weights[name] for name, data in parts.items() if weights[name])
    return {name: min(len(data), math.ceil(largest * weights[name] - 1e-9)) for name, data in parts.items()}


def _sample(parts: Mapping[str, PairData], shares: Mapping[str, int], seed: int) -> PairData:
    taken = []
    for i, (name, data) in enumerate(parts.items()):
        order = np.random.default_rng([seed, i]).permutation(len(data))
        taken.append(data.take(order[: shares[name]].tolist()))
    joined = _joined(taken)
    order = np.random.default_rng([seed, len(parts)]).permutation(len(joined))
    return _joined([joined.take(order.tolist())], noted=Counter({f"part {name}": n for name, n in shares.items()}))


def _joined(parts: Sequence[PairData], **more: Any) -> PairData:
    return PairData(
        tuple(row for data in parts for row in data.prompts),
        tuple(row for data in parts for row in data.responses),
        tuple(row for data in parts for row in data.scores) if all(data.scores for data in parts) else (),
        keys=tuple(key for data in parts for key in data.keys),
        **more,
    )
