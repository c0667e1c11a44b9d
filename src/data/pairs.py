"""Preference pairs as token ids: what every data source produces and every policy reads.

Shape legend used all over `src`:  R runs of the stack, P pairs of the data, B pairs of a batch,
2 = (chosen, rejected) in that order, T response tokens (padded).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from src.errors import BadInput

Ids = tuple[int, ...]


@dataclass(frozen=True)
class PairData:
    """P preference pairs. Token ids are what the policy sees: special tokens, templates and truncation already applied.

    `candidates` lists the responses that exist, for policies that treat a whole response as one action; by default
    those that occur, in order of first appearance, chosen first. `dropped` and `cut` count rows by reason.
    """

    prompts: tuple[Ids, ...]
    chosen: tuple[Ids, ...]
    rejected: tuple[Ids, ...]
    candidates: tuple[Ids, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if not self.candidates:
            both = (ids for pair in zip(self.chosen, self.rejected, strict=True) for ids in pair)
            object.__setattr__(self, "candidates", tuple(dict.fromkeys(both)))

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths_P2(self) -> np.ndarray:
        """Response lengths in tokens, [P, 2]."""
        return np.array([(len(w), len(loser)) for w, loser in zip(self.chosen, self.rejected, strict=True)])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids and their boundaries."""
        digest = hashlib.sha256()
        for triple in zip(self.prompts, self.chosen, self.rejected, strict=True):
            for ids in triple:
                digest.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
        return digest.hexdigest()

    def report(self) -> dict[str, object]:
        """The run directory's data.json."""
        return {
            "fingerprint": self.fingerprint,
            "pairs": len(self),
            "prompts": len(set(self.prompts)),
            "response_tokens": [int(n) for n in self.lengths_P2.sum(axis=0)],
            "dropped": dict(self.dropped),
            "cut": dict(self.cut),
        }


def keep_usable(
    rows: Iterable[tuple[Ids, Ids, Ids]],
    source: str,
    dropped: Counter[str] | None = None,
    cut: Counter[str] | None = None,
    candidates: tuple[Ids, ...] = (),
) -> PairData:
    """Drop rows no loss can learn from, count them by reason.

    Args:
        rows: (prompt, chosen, rejected) token ids.
        source: what to call the data in an error.
        dropped, cut: counts from earlier stages, carried on.

    Raises:
        BadInput: no row is left.
    """
    kept: list[tuple[Ids, Ids, Ids]] = []
    counts: Counter[str] = Counter(dropped or ())
    for prompt, chosen, rejected in rows:
        if not chosen or not rejected:
            counts["empty response"] += 1
        elif chosen == rejected:
            counts["chosen equal to rejected"] += 1
        else:
            kept.append((prompt, chosen, rejected))
    if not kept:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in counts.items()) or "it has no rows"
        raise BadInput(f"{source}: no usable pair ({reasons})")
    prompts, chosen_all, rejected_all = zip(*kept, strict=True)
    return PairData(prompts, chosen_all, rejected_all, candidates, counts, Counter(cut or ()))
